"""Parts of a distillation's loss, each divided by its own count of the whole step."""

import numpy as np
import pytest
import torch

from tests.unit.run.test_step import ALONE, CountingEngine, batch_of, micro_of
from trainer.config.distill import DistillConfig
from trainer.engine.policy import Policy
from trainer.model.head.comparison import Comparison
from trainer.objective.distill.distill_objective import DistillObjective
from trainer.run.step import train_step
from trainer.teacher.cached import CachedBase
from trainer.teacher.reference import BaseRows

OPTIONS = DistillConfig("big", temperature=2.0, weight=1.5, cross_entropy=0.25)


class WeighingEngine(CountingEngine):
    """Loss 2 at every supervised token and a divergence of 5 at every row of the teacher, each as it weighs."""

    def forward(self, ask, **inputs):
        _, nll = super().forward(ask, **inputs)
        weights = torch.ones(len(nll)) if ask.weights_N is None else ask.weights_N
        counted = weights * nll
        if ask.teacher is None:
            return counted.sum(), nll
        rows, how = ask.teacher.rows_R, ask.teacher.how
        counted[rows] *= how.cross_entropy
        found = torch.full((len(rows),), 5.0)
        return counted.sum() + ask.teacher.beta * (weights[rows] * found).sum(), nll, found


def take(*micros):
    """Take a step in which the first source is distilled."""
    for micro in micros:
        rows = np.flatnonzero((micro.labels_BT != -100).reshape(-1))
        rows = rows[np.repeat(np.array(micro.source_B) == 0, micro.labels_BT.shape[1])[rows]]
        if len(rows):
            shape = (len(rows), 3)
            micro.attached = BaseRows(rows, np.zeros(shape, np.int32), np.full(shape, -1.5, np.float16))
    how = Comparison(temperature=2.0, cross_entropy=OPTIONS.cross_entropy)
    teacher = CachedBase(OPTIONS.weight * OPTIONS.temperature**2, None, how)
    engine = WeighingEngine()
    objective = DistillObjective(["a", "b"], {0}, OPTIONS, teacher)
    result = train_step(Policy(engine, ALONE, False), objective, batch_of(*micros), stop=lambda: False)
    backward = sum(call[1] for call in engine.calls if call[0] == "backward")
    return backward, result, {mean.name: mean.of(result.sums) for mean in result.means}


def test_three_sums_over_two_counts_are_what_is_minimised_and_what_is_said():
    """14 tokens of `a` in two micro-batches, 7 of `b` in one; a weight of counts would be wrong by their ratio."""
    backward, result, read = take(micro_of([[8], [8]], [0, 1]), micro_of([[8]], [0]))
    assert (result.sums["distilled"], result.sums["others"]) == (14, 7)
    wanted = 1.5 * 4 * 5 + 0.25 * 2 + 2
    assert backward == pytest.approx(wanted) and result.loss == read["loss"] == pytest.approx(wanted)
    assert (read["divergence"], read["cross_entropy"]) == (5.0, 2.0)
    assert (read["loss/a"], read["loss/b"]) == (2.0, 2.0)


def test_a_step_without_one_of_both_divides_by_the_other():
    backward, result, read = take(micro_of([[8]], [1]), micro_of([[3]], [1]))
    assert backward == pytest.approx(2.0) and result.loss == pytest.approx(2.0) and result.is_sound
    assert read["divergence"] is None and read["cross_entropy"] is None
    backward, result, _ = take(micro_of([[8]], [0]))
    assert result.loss == pytest.approx(30.5) and backward == pytest.approx(30.5)
