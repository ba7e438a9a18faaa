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
    if config.replay.kl.beta and config.objective.kind not in TAKES_TEACHER:
        yield must(
            "replay.kl.beta",
            f"0 with objective={config.objective.kind.value}",
            config.replay.kl.beta,
            "Set replay.kl.beta=0, or objective=causal_lm.",
        )
