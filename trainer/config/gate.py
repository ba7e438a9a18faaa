"""Config section for the gate: what a tuned model may lose and must gain before it passes."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class GateRule:
    """Tolerances of one held-out set, against the base model."""

    max_rise_nats: float | None = None
    """The held-out loss may rise by at most this."""
    min_drop_nats: float | None = None
    """The held-out loss must fall by at least this."""


@dataclass
class GateConfig:
    """Rules by name of a source, by role (target, replay, probe), or `general`: all that is not target."""

    sets: dict[str, GateRule] = field(default_factory=dict)
    """Empty: no gate."""
