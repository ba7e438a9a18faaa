"""Config section for what a run minimises."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from trainer.config.data import TokenValue
from trainer.config.distill import DistillConfig
from trainer.config.preference import PreferenceConfig
from trainer.config.reward import RewardConfig


class ObjectiveKind(Enum):
    """What a run minimises."""

    causal_lm = "causal_lm"
    """Cross-entropy of supervised tokens."""
    weighted = "weighted"
    """Cross-entropy in which rows and turns count by their `weight`."""
    preference = "preference"
    """A loss of pairs of answers, with the cross-entropy of sources without pairs beside it."""
    reward = "reward"
    """How often the better answer of a pair gets the higher score: a reward model."""
    distill = "distill"
    """The divergence from a teacher's next-token distribution, with cross-entropy beside it."""


VALUES: dict[ObjectiveKind, tuple[TokenValue, ...]] = {
    ObjectiveKind.weighted: (TokenValue.weight,),
    ObjectiveKind.preference: (TokenValue.label,),
    ObjectiveKind.reward: (TokenValue.margin,),
}
"""Numbers of tokens that an objective reads; none where it is not named."""
TAKES_TEACHER = (ObjectiveKind.causal_lm,)
"""Objectives that can keep near to the base on replay."""


@dataclass
class ObjectiveConfig:
    """What a run minimises."""

    kind: ObjectiveKind = ObjectiveKind.causal_lm
    """Set by the objective group."""
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)

    @property
    def values(self) -> tuple[TokenValue, ...]:
        """Return the numbers of tokens that it reads, which stores must keep."""
        return VALUES.get(self.kind, ())

    @property
    def unread(self) -> tuple[str, ...]:
        """Return how keys begin that are left at their defaults, and so decide nothing of a run."""
        if self.kind is not ObjectiveKind.distill:
            return ("objective.distill.",)
        return () if self.distill.on_policy.is_on else ("objective.distill.on_policy.",)

    @property
    def has_rounds(self) -> bool:
        """Tell whether the model answers prompts itself, in rounds, and learns from its answers."""
        return self.kind is ObjectiveKind.distill and self.distill.on_policy.is_on

    @property
    def named(self) -> str:
        """Return it as the word that chooses it on a command line."""
        # Every loss of preferences has an option of its name.
        is_preference = self.kind is ObjectiveKind.preference
        return f"objective={(self.preference.loss if is_preference else self.kind).value}"
