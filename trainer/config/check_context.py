"""Rules about the longest input that a model was made for. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config.rule import Problem, must, problem, told_together
from trainer.config.tune import TuneConfig


def context_problems(longest: int | None, seq_len: int, tune: TuneConfig) -> Iterator[Problem]:
    """Yield a problem where packs, or virtual tokens before them, are longer than the model's context.

    Args:
        longest: The context in tokens; None where the model does not say.
        seq_len: Tokens of a pack.
    """
    if longest is None:
        return
    if seq_len > longest:
        rule = f"at most the model's context of {longest}"
        yield must("data.seq_len", rule, seq_len, f"Set data.seq_len={longest}.")
    elif tune.is_virtual and seq_len + tune.virtual_tokens > longest:
        rule = f"must leave room for packs of {seq_len} in the model's context of {longest}"
        fix = f"Set data.seq_len={longest - tune.virtual_tokens}."
        yield problem("tune.virtual_tokens", f"{rule}, but is {tune.virtual_tokens} instead. {fix}")


def check_context(longest: int | None, seq_len: int, tune: TuneConfig) -> None:
    """Raise where there is such a problem.

    Raises:
        ConfigError: The model's context has no room.
    """
    sentences = [one.sentence for one in context_problems(longest, seq_len, tune)]
    if sentences:
        raise told_together(sentences)
