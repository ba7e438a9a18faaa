"""Config section of a sweep: what its points are compared by, and how a sweeper that learns goes about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from trainer.config.metric import Direction


class ObjectiveValue(Enum):
    """Which logged value of the objective counts. Step 0, the base model, never does."""

    last = "last"
    best = "best"


class SweepSampler(Enum):
    """How hydra/sweeper=optuna chooses its points."""

    tpe = "tpe"
    """Bergstra et al. 2011, as Optuna has it: the first ten points are random."""
    random = "random"


@dataclass
class SweepConfig:
    """What `-m` compares. Everything else about a sweep is in the words of the command line."""

    objective: str = "eval_mean"
    """Key of metrics.jsonl: eval_mean, eval/SOURCE, loss, loss/SOURCE, forgetting, kl_mean, tasks/TASK/METRIC,
    tokens_per_s, ..."""
    direction: Direction = Direction.minimize
    """Which objective is better."""
    value: ObjectiveValue = ObjectiveValue.last
    """The last logged value of the objective, or the best of the run."""
    trials: int = 20
    """Points of hydra/sweeper=optuna, those of earlier starts in the same directory included. At least 1."""
    parallel: int = 4
    """Jobs that hydra/sweeper=optuna hands in together; it chooses the next ones when all of them have ended. On one
    machine points run one after the other. At least 1."""
    sampler: SweepSampler = SweepSampler.tpe
    """How hydra/sweeper=optuna chooses."""
    seed: int = 0
    """Seed of the sampler."""
    poll_s: float = 10.0
    """Seconds between two looks at the queue while a sweep waits for its jobs."""
