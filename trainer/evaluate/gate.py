"""The gate: compares what a tuned model lost and gained with what it may. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainer.config.gate import GateRule, TaskRule, about_nothing, sets_about
from trainer.errors import ConfigError
from trainer.evaluate.compare import SetComparison
from trainer.evaluate.tasks.score import TaskComparison

MAX_RISE = "rises by at most"
MAX_DROP = "falls by at most"
MIN_RISE = "rises by at least"
MIN_DROP = "falls by at least"
NATS = "nats"


@dataclass(frozen=True, slots=True)
class GateResult:
    """One rule on one set or task."""

    subject: str
    """Name of the set or task."""
    unit: str
    """`nats`, or the metric of the task."""
    rule: str
    """One of the four wordings above."""
    allowed: float
    change: float
    """Tuned minus base; NaN where one of them is not finite."""

    @property
    def passed(self) -> bool:
        """Tell whether the rule holds. A change that is not a number never passes."""
        if self.rule in (MAX_RISE, MIN_RISE):
            return self.change <= self.allowed if self.rule == MAX_RISE else self.change >= self.allowed
        return -self.change <= self.allowed if self.rule == MAX_DROP else -self.change >= self.allowed

    @property
    def excess(self) -> float:
        """Return by how much the rule is broken, in its unit; 0 if it holds."""
        moved = self.change if self.rule in (MAX_RISE, MIN_RISE) else -self.change
        over = moved - self.allowed if self.rule in (MAX_RISE, MAX_DROP) else self.allowed - moved
        return 0.0 if self.passed else over


def check_gate(rules: Mapping[str, GateRule], sets: Sequence[SetComparison]) -> list[GateResult]:
    """Return every rule on every set it is about.

    Raises:
        ConfigError: A rule about a set that was not evaluated.
    """
    results = []
    by_name = {compared.name: compared for compared in sets}
    roles = {compared.name: compared.role for compared in sets}
    for key, rule in rules.items():
        chosen = sets_about(key, roles)
        if not chosen:
            raise ConfigError(about_nothing(key, roles))
        limits = ((MAX_RISE, rule.max_rise_nats), (MIN_DROP, rule.min_drop_nats))
        for compared in (by_name[name] for name in chosen):
            results += [
                GateResult(compared.name, NATS, wording, limit, compared.change_nats)
                for wording, limit in limits
                if limit is not None
            ]
    return results


def check_tasks(rules: Mapping[str, TaskRule], tasks: Sequence[TaskComparison]) -> list[GateResult]:
    """Return every rule on the task it is about.

    Raises:
        ConfigError: A rule about a task or metric that was not measured, or one that a worse model would pass.
    """
    results = []
    for key, rule in rules.items():
        found = _scored(key, rule.metric, tasks)
        limits = {"max_drop": MAX_DROP, "min_rise": MIN_RISE, "max_rise": MAX_RISE, "min_drop": MIN_DROP}
        for name, wording in limits.items():
            limit = getattr(rule, name)
            if limit is None:
                continue
            is_for_higher = name in ("max_drop", "min_rise")
            if found.higher_is_better is not None and found.higher_is_better is not is_for_higher:
                better, fix = (
                    ("more", "max_drop or min_rise")
                    if found.higher_is_better
                    else ("less", "max_rise or min_drop")
                )
                raise ConfigError(
                    f"`gate.tasks.{key}.{name}` must be left out for {rule.metric}, where {better} is better, but is "
                    f"{limit:g} instead. Use {fix}."
                )
            change = math.nan if found.change is None else found.change
            results.append(GateResult(key, rule.metric, wording, limit, change))
    return results


def _scored(key: str, metric: str, tasks: Sequence[TaskComparison]) -> TaskComparison:
    measured = [compared for compared in tasks if compared.task == key]
    if not measured:
        known = ", ".join(dict.fromkeys(compared.task for compared in tasks)) or "none"
        raise ConfigError(
            f"`gate.tasks.{key}` must be about a task that was evaluated ({known}), but no such task was instead. Run: "
            f"palimpsest evaluate run_dir=... 'evaluate.tasks.names=[{key}]', or leave the rule out "
            f"(one of a file: '~gate.tasks.{key}')."
        )
    for compared in measured:
        if compared.metric == metric:
            return compared
    raise ConfigError(
        f"`gate.tasks.{key}.metric` must be a metric of the task ({'; '.join(c.metric for c in measured)}), but is "
        f"'{metric}' instead. Name one of them."
    )
