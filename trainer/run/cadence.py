"""When things happen in a run: by step, and saves by time where nobody said."""

from __future__ import annotations

import math
import platform
from dataclasses import dataclass

from trainer.checkpoint.best import BestRule
from trainer.config.metric import Direction, is_task_metric
from trainer.config.schema import RunConfig
from trainer.config.train import CheckpointConfig
from trainer.dist.mesh import Mesh
from trainer.evaluate.tasks.scores import TaskScores
from trainer.evaluate.tasks.task_metrics import better_direction
from trainer.run.save_clock import SaveClock


@dataclass(frozen=True, slots=True)
class Cadence:
    """When things happen, in optimizer steps; 0 means only at the end."""

    num_steps: int
    log_every: int
    evaluate_every: int
    save_every: int
    saves: bool
    evaluate_before_save: bool
    max_non_finite: int
    patience: int | None
    min_delta_nats: float
    verify_every: int = 0

    def log_due(self, step: int) -> bool:
        """Tell whether the step is logged."""
        return step % self.log_every == 0 or step == self.num_steps

    def verify_due(self, step: int) -> bool:
        """Tell whether the step is done twice."""
        return bool(self.verify_every and step % self.verify_every == 0)

    def save_due(self, step: int, urgency: int = 0) -> bool:
        """Tell whether a checkpoint is written after the step.

        Args:
            urgency: How often the time has passed after which one is due: once waits for what is measured, twice not.
        """
        by_time = urgency > 1 or (
            urgency == 1 and (not self.evaluate_every or step % self.evaluate_every == 0)
        )
        due = step == self.num_steps or bool(self.save_every and step % self.save_every == 0) or by_time
        return due and self.saves

    def evaluate_due(self, step: int) -> bool:
        """Tell whether held-out loss is taken after the step."""
        due = bool(self.evaluate_every and step % self.evaluate_every == 0)
        return due or step == self.num_steps or (self.evaluate_before_save and self.save_due(step))

    def evaluations_from(self, step: int) -> int:
        """Return the evaluations that are due after a step or later ones."""
        saves = self.save_every if self.saves and self.evaluate_before_save else 0

        def multiples(every: int) -> int:
            return self.num_steps // every - max(step - 1, 0) // every if every else 0

        both = multiples(math.lcm(self.evaluate_every, saves))
        is_last_one = self.num_steps and all(
            self.num_steps % every for every in (self.evaluate_every, saves) if every
        )
        return multiples(self.evaluate_every) + multiples(saves) - both + int(bool(is_last_one))


def cadence_of(config: RunConfig, total: int, best: BestRule | None) -> Cadence:
    """Return the cadence of a run of so many steps."""
    return Cadence(
        num_steps=total,
        log_every=config.log.every_steps,
        evaluate_every=config.evaluate.every_steps,
        save_every=config.checkpoint.every_steps or 0,
        saves=config.checkpoint.enabled,
        # A save by time comes when a machine is slow: it must not decide what is measured, and so patience and replay.
        evaluate_before_save=best is not None
        and not best.saves_at_once
        and config.checkpoint.every_steps is not None,
        max_non_finite=config.train.max_non_finite_steps,
        patience=config.evaluate.patience,
        min_delta_nats=config.evaluate.min_delta_nats,
        verify_every=config.train.verify_every,
    )


def save_clock_of(options: CheckpointConfig, mesh: Mesh) -> SaveClock | None:
    """Return what says when to save by time; None where steps say it. Collective: every rank."""
    num_nodes = len(set(mesh.gather(platform.node())))
    if options.every_steps is not None or not options.enabled:
        return None
    return SaveClock(options.node_mtbf_days, num_nodes, mesh.is_first)


def best_rule(config: RunConfig, task_scores: TaskScores | None) -> BestRule | None:
    """Return by what the best checkpoint is kept; None where none is.

    Raises:
        ConfigError: A benchmark task has no such metric.
    """
    options, best = config.checkpoint, config.checkpoint.best
    if not (options.keep_best and options.enabled):
        return None
    if not is_task_metric(best.metric):
        return BestRule(best.metric, best.direction or Direction.minimize, saves_at_once=False)
    assert task_scores is not None and task_scores.loaded is not None, "checked with the configuration"
    direction = better_direction(best.metric, best.direction, task_scores.loaded)
    return BestRule(best.metric, direction, saves_at_once=True)
