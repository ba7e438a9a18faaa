"""Rules about answers that share a prompt. Pure; what depends on the model is asked in model/carry.py."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config.data import DataConfig, Format, PackingMode
from trainer.config.rule import Problem, problem
from trainer.config.schema import RunConfig

KEY = "data.share_prompts"


def holds_pairs(data: DataConfig) -> bool:
    """Tell whether any source holds pairs, whose answers have a prompt to share."""
    return any(source.format is Format.preference for source in data.sources.values())


def sharing_problems(config: RunConfig) -> Iterator[Problem]:
    """Yield what does not go with prompts that are shared, where that is asked for."""
    if not config.data.share_prompts:
        return
    if not holds_pairs(config.data):
        rule = "null or false without a source of format=preference"
        yield problem(KEY, f"must be {rule}, but is true instead. Remove it, or set data=preference.")
        return
    why = why_not_asked(config)
    if why is not None:
        yield refusal(why)


def refusal(why: str) -> Problem:
    """Return the problem of a run that shall share prompts and cannot, for this reason."""
    return problem(KEY, f"must be null or false here, but is true instead: {why}. Set {KEY}=false.")


def why_not_asked(config: RunConfig) -> str | None:
    """Say what of a configuration does not go with shared prompts; None where nothing does."""
    if config.tune.is_virtual:
        return f"tune.method={config.tune.method.value} puts virtual tokens before every document"
    if config.train.router_bias_rate:
        return "train.router_bias_rate goes by the tokens of experts, and those of a prompt would count once"
    if config.data.packing is PackingMode.none:
        return "data.packing=none gives every document a row of its own"
    return None
