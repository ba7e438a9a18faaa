"""Rules about what a run minimises. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config.check_values import value_problems
from trainer.config.objective import TAKES_TEACHER
from trainer.config.rule import Problem, must
from trainer.config.schema import RunConfig


def objective_problems(config: RunConfig) -> Iterator[Problem]:
    """Yield what an objective cannot do, and numbers of tokens that it does not read or misses."""
    yield from value_problems(config.data, config.objective.values)
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
    for name, source in config.data.sources.items():
        if source.holds_preferences:
            yield must(
                f"data.sources.{name}.format",
                f"text, completion, chat or ids for objective={config.objective.kind.value}",
                source.format.value,
                "It would learn rejected answers too: take the chosen ones as format=completion.",
            )
