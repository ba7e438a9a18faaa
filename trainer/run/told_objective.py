"""What a run says at its start of what it minimises."""

from __future__ import annotations

from trainer.config.data import Role
from trainer.config.objective import ObjectiveKind
from trainer.config.schema import RunConfig

NOT_COMPARED = (
    "A reward model answers with a score: what is about the answers of a language model (comparison with the base, KL, "
    "benchmark tasks, the gate) is off."
)


def told_objective(config: RunConfig) -> str | None:
    """Return it in sentences; None where it is plain cross-entropy."""
    options = config.objective
    match options.kind:
        case ObjectiveKind.preference:
            learnt = [source for source in config.data.sources.values() if source.role is not Role.probe]
            has_text = not all(source.holds_preferences for source in learnt)
            return f"{options.preference.described} {options.preference.told_loss(has_text)}"
        case ObjectiveKind.distill:
            return options.distill.told(
                any(source.role is Role.replay for source in config.data.sources.values())
            )
        case ObjectiveKind.reward:
            return f"{options.reward.described} {NOT_COMPARED}"
        case _:
            return None
