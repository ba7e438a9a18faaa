"""Rules about what a run minimises. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config.check_preference import preference_problems
from trainer.config.check_values import value_problems
from trainer.config.data import Format, Role
from trainer.config.objective import TAKES_TEACHER, ObjectiveKind
from trainer.config.preference import UNPAIRED
from trainer.config.rule import Problem, must
from trainer.config.schema import RunConfig


def objective_problems(config: RunConfig) -> Iterator[Problem]:
    """Yield what an objective cannot do, and numbers of tokens that it does not read or misses."""
    yield from value_problems(config.data, config.objective.values)
    yield from preference_problems(config.objective.preference)
    if config.objective.kind is ObjectiveKind.preference and not config.objective.preference.is_paired:
        loss = config.objective.preference.loss.value
        rule = f"a loss of pairs, not one of {', '.join(sorted(one.value for one in UNPAIRED))}"
        yield must("objective.preference.loss", rule, loss, "Set objective=dpo.")
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
    kind, sources = config.objective.kind, config.data.sources
    is_preference = kind is ObjectiveKind.preference
    for name, source in sources.items():
        is_fed = source.format is Format.preference if is_preference else False
        if source.holds_preferences and not is_fed:
            rest = ", chat, ids or preference" if is_preference else ", chat or ids"
            yield must(
                f"data.sources.{name}.format",
                f"text, completion{rest} for objective={kind.value}",
                source.format.value,
                "It would learn rejected answers too: take the chosen ones as format=completion.",
            )
    targets = {name: source for name, source in sources.items() if source.role is Role.target}
    if is_preference and targets and all(s.format is not Format.preference for s in targets.values()):
        name, source = next(iter(targets.items()))
        rule = "preference in some source with role=target for objective=preference"
        yield must(f"data.sources.{name}.format", rule, source.format.value, "Or set objective=causal_lm.")
