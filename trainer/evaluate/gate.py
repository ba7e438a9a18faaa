"""The gate: compares what a tuned model lost and gained with what it may. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from trainer.config.gate import GateRule
from trainer.errors import ConfigError
from trainer.evaluate.compare import SetComparison

GENERAL = "general"
ROLES = ("target", "replay", "probe")


@dataclass(frozen=True, slots=True)
class GateResult:
    """One rule on one set."""

    set: str
    rule: str
    """`rises by at most` or `falls by at least`."""
    allowed_nats: float
    change_nats: float
    """Tuned minus base; positive is worse."""
    passed: bool

    @property
    def excess_nats(self) -> float:
        """Return by how much the rule is broken; 0 if it holds."""
        limit = self.allowed_nats if self.rule == MAX_RISE else -self.allowed_nats
        return 0.0 if self.passed else self.change_nats - limit


MAX_RISE = "rises by at most"
MIN_DROP = "falls by at least"


def check_gate(rules: Mapping[str, GateRule], sets: Sequence[SetComparison]) -> list[GateResult]:
    """Return every rule on every set it is about. A change that is not a number never passes.

    Raises:
        ConfigError: A rule about a set that was not evaluated.
    """
    results = []
    for key, rule in rules.items():
        chosen = _chosen(key, sets)
        if not chosen:
            known = ", ".join(compared.name for compared in sets) or "none"
            raise ConfigError(
                f"`gate.sets.{key}` must be about a set that was evaluated ({known}), a role or general, but no "
                f"such set has held-out text instead. Add it as a source, or remove the rule with ~gate.sets.{key}."
            )
        for compared in chosen:
            results += list(_apply(rule, compared))
    return results


def _chosen(key: str, sets: Sequence[SetComparison]) -> list[SetComparison]:
    named = [compared for compared in sets if compared.name == key]
    if named:
        return named
    if key == GENERAL:
        return [compared for compared in sets if compared.role != "target"]
    return [compared for compared in sets if key in ROLES and compared.role == key]


def _apply(rule: GateRule, compared: SetComparison) -> Iterator[GateResult]:
    change = compared.change_nats
    if rule.max_rise_nats is not None:
        passed = change <= rule.max_rise_nats
        yield GateResult(compared.name, MAX_RISE, rule.max_rise_nats, change, passed)
    if rule.min_drop_nats is not None:
        passed = -change >= rule.min_drop_nats
        yield GateResult(compared.name, MIN_DROP, rule.min_drop_nats, change, passed)
