"""Config section for the gate: what a tuned model may lose and must gain before it passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

GENERAL = "general"
ROLES = ("target", "replay", "probe")


@dataclass
class GateRule:
    """Tolerances of one held-out set, against the base model."""

    max_rise_nats: float | None = None
    """The held-out loss may rise by at most this."""
    min_drop_nats: float | None = None
    """The held-out loss must fall by at least this."""


@dataclass
class TaskRule:
    """Tolerances of one metric of a benchmark task, against the base model, in units of the metric."""

    metric: str = "acc"
    """Metric of the task, such as `acc`; `exact_match,strict-match` where a task filters answers in several ways."""
    max_drop: float | None = None
    """A score where more is better may fall by at most this."""
    min_rise: float | None = None
    """A score where more is better must rise by at least this."""
    max_rise: float | None = None
    """A score where less is better, such as a perplexity, may rise by at most this."""
    min_drop: float | None = None
    """A score where less is better must fall by at least this."""


@dataclass
class GateConfig:
    """Rules about held-out sets and about benchmark tasks; all of them must hold. Without any there is no gate."""

    sets: dict[str, GateRule] = field(default_factory=dict)
    """By name of a source, by role (target, replay, probe), or `general`: all that is not target. A source that is
    called like a role, or general, is one of those."""
    tasks: dict[str, TaskRule] = field(default_factory=dict)
    """By name of a task or group out of evaluate.tasks.names, or tool_calls, refusals_harmful and refusals_benign,
    which evaluate.asked asks."""

    @property
    def has_rules(self) -> bool:
        """Tell whether there is a gate."""
        return bool(self.sets or self.tasks)


def sets_about(key: str, roles: Mapping[str, str]) -> list[str]:
    """Return the sets that a rule of `gate.sets` is about: the one of this name, those of a role, or all general.

    A set that is called like a group takes no other out of its rule.

    Args:
        roles: Of every set, by name.
    """
    groups = {role: {role} for role in ROLES} | {GENERAL: {*ROLES} - {"target"}}
    return [name for name, role in roles.items() if name == key or role in groups.get(key, ())]


def about_nothing(key: str, roles: Mapping[str, str]) -> str:
    """Return the sentence about a rule of `gate.sets` that is about no set with held-out text."""
    known = ", ".join(f"{name}: {role}" for name, role in roles.items()) or "none"
    return (
        f"`gate.sets.{key}` must be about a set with held-out text ({known}), a role or general, but no such set is "
        f"there instead. Add it as a source, or leave the rule out (one of a file: '~gate.sets.{key}')."
    )
