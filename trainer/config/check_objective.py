"""Rules about what a run minimises. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config.check_preference import preference_problems
from trainer.config.check_values import value_problems
from trainer.config.data import Format, Role
from trainer.config.objective import TAKES_TEACHER, ObjectiveKind
from trainer.config.rule import Problem, must
from trainer.config.schema import RunConfig


def objective_problems(config: RunConfig) -> Iterator[Problem]:
    """Yield what an objective cannot do, and numbers of tokens that it does not read or misses."""
    yield from value_problems(config.data, config.objective.values)
    yield from preference_problems(config.objective.preference)
    yield from _fed_problems(config)
    if config.replay.kl.beta and config.objective.kind not in TAKES_TEACHER:
        yield must(
            "replay.kl.beta",
            f"0 with objective={config.objective.kind.value}",
            config.replay.kl.beta,
            "Set replay.kl.beta=0, or objective=causal_lm.",
        )


def _fed_problems(config: RunConfig) -> Iterator[Problem]:
    """Yield sources whose rows the objective would misread: of a pair it would learn the rejected answer too."""
    objective, sources = config.objective, config.data.sources
    is_preference = objective.kind is ObjectiveKind.preference
    fed = Format.preference if objective.preference.is_paired else Format.unpaired
    asked = f"objective.preference.loss={objective.preference.loss.value}" if is_preference else ""
    misread = {
        name: source
        for name, source in sources.items()
        if source.holds_preferences and not (is_preference and source.format is fed)
    }
    for name, source in misread.items():
        rest = f", chat, ids or {fed.value} for {asked}" if is_preference else ""
        yield must(
            f"data.sources.{name}.format",
            f"text, completion{rest or f', chat or ids for objective={objective.kind.value}'}",
            source.format.value,
            "It would learn rejected answers too: take the chosen ones as format=completion.",
        )
    targets = {name: source for name, source in sources.items() if source.role is Role.target}
    if is_preference and targets and all(source.format is not fed for source in targets.values()):
        if any(name in misread for name in targets):
            return  # told already
        name, source = next(iter(targets.items()))
        rule = f"{fed.value} in some source with role=target for {asked}"
        yield must(f"data.sources.{name}.format", rule, source.format.value, "Or set objective=causal_lm.")
