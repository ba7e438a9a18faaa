"""What `palimpsest plan` says of a run of preferences: what its rows are, and what is asked before the first step."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from trainer.command.plan_time import Timing, num_steps_of
from trainer.config.check_sharing import why_not_asked
from trainer.config.data import Format
from trainer.config.many import many
from trainer.config.objective import ObjectiveKind
from trainer.config.preference import PreferenceLoss
from trainer.config.schema import RunConfig
from trainer.data.store.counted_pairs import shared_counts
from trainer.forecast.memory import RunShape, Weights
from trainer.forecast.shapes import DecoderShape
from trainer.metrics.console import duration_text

SUM_BYTES = 8
"""Of the reference, an answer."""


def answer_notes(
    config: RunConfig, shape: DecoderShape, run: RunShape, weights: Weights, timing: Timing | None
) -> Iterator[str]:
    """Yield notes on a run of preferences; none of any other.

    Args:
        timing: Of a step; None where it is not forecast.
    """
    options = config.objective.preference
    if config.objective.kind is ObjectiveKind.reward:
        yield (
            f"{_of_pairs(config)} A score is one number an answer: there are no logits, and no output layer of a "
            "vocabulary."
        )
    if config.objective.kind is not ObjectiveKind.preference:
        return
    if options.is_paired:
        yield _of_pairs(config)
    else:
        yield (
            "Rows are answers with a label, each a document behind its prompt. One that does not fit a pack is dropped."
        )
    if not options.needs_reference:
        yield f"The loss {options.loss.value} has no reference: nothing is asked before the first step."
        return
    is_kto = options.loss is PreferenceLoss.kto
    each = 2 * SUM_BYTES if options.is_paired or is_kto else SUM_BYTES
    twice = ", and as many behind the prompts of others" if is_kto else ""
    seconds = None if timing is None else _forward_s(shape, run, weights, timing) * (2 if is_kto else 1)
    yield (
        "Before the first step one forward pass asks the model about all answers that the run draws and those held out"
        f"{twice}: their reference, kept in data.cache_dir, {_size(config, each)}. "
        f"{_how_long(config, seconds)} A run that finds them there asks about a few."
    )
    if is_kto:
        more = "" if seconds is None else f", about {seconds / 2:.2f} s"
        yield f"KTO takes one more forward pass of each step{more}, which the time of a step leaves out."


def _of_pairs(config: RunConfig) -> str:
    """Return what a pair is in a pack, and what its tokens are where they were counted."""
    dropped = "A pair that does not fit a pack is dropped."
    if config.data.share_prompts is False or why_not_asked(config) is not None:
        return (
            "Rows are pairs, each two documents: the prompt with the chosen answer, and with the rejected one. Both "
            f"are among the tokens of a step. {dropped}"
        )
    found = _counted(config)
    saved = "How many tokens that saves is counted by palimpsest prepare."
    if found is not None:
        num_pairs, num_tokens, num_shared = found
        saved = (
            f"As they are prepared, a pair has {num_tokens / num_pairs:,.1f} tokens; as two documents it would have "
            f"{(num_tokens + num_shared) / num_pairs:,.1f}, {(num_tokens + num_shared) / num_tokens:.2f} times as many."
        )
    return (
        "Rows are pairs, each a prompt with the chosen answer and, behind the same prompt, the rejected one. The "
        f"prompt is once among the tokens of a step, unless the start says otherwise of the model. {saved} {dropped}"
    )


def _size(config: RunConfig, each: int) -> str:
    """Return what the reference takes: of a pair or a row, and of all pairs where they were counted."""
    if not config.objective.preference.is_paired:
        return f"{each} bytes a row"
    found = _counted(config)
    return f"{each} bytes a pair" + (
        "" if found is None else f", {found[0] * each:,} in all for {many(found[0], 'pair')}"
    )


def _counted(config: RunConfig) -> tuple[int, int, int] | None:
    """Return pairs, their tokens, and those of prompts that are not there twice; None where they are not prepared."""
    data = dataclasses.replace(config.data, share_prompts=True)
    found = [
        shared_counts(name, source, data)
        for name, source in data.sources.items()
        if source.format is Format.preference
    ]
    whole = [one for one in found if one is not None]
    if not whole or len(whole) < len(found):
        return None
    pairs, tokens, shared = (sum(column) for column in zip(*whole, strict=True))
    return pairs, tokens, shared


def _how_long(config: RunConfig, seconds: float | None) -> str:
    """Return how long the reference takes, as far as it is known."""
    if seconds is None:
        return "How long that takes is not forecast."
    num_steps = num_steps_of(config)
    a_step = f"It takes about {seconds:.2f} s for as many tokens as a step has"
    if num_steps is None:
        return f"{a_step}."
    return f"{a_step}, at most {duration_text(seconds * num_steps)} for those of {num_steps:,} steps."


def _forward_s(shape: DecoderShape, run: RunShape, weights: Weights, timing: Timing) -> float:
    """Return the seconds of a forward pass over the tokens of a step: its share of the passes that a step makes."""
    asked = run.checkpoint_layers
    again = (shape.num_layers if asked < 0 else min(asked, shape.num_layers)) / shape.num_layers
    passes = (3 if weights.is_full else 2) + again
    own = timing.own
    return (own.matmuls + own.attention + own.memory) / passes
