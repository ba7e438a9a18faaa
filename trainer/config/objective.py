"""Config section for what a run minimises."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class ObjectiveKind(Enum):
    """What a run minimises."""

    causal_lm = "causal_lm"


@dataclass
class ObjectiveConfig:
    """What a run minimises."""

    kind: ObjectiveKind = ObjectiveKind.causal_lm
    """Set by the objective group."""
