"""The loss of a pair of scores, and how scores rank pairs, in numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch

from trainer.config.reward import RewardConfig
from trainer.evaluate.held_out_scores import PairScores
from trainer.objective.reward.judged_scores import judge_scores
from trainer.objective.reward.reward_losses import off_centre, pair_losses


def tensor(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def test_the_loss_of_a_pair_is_that_of_bradley_and_terry_beyond_its_margin():
    found = pair_losses(tensor(1.0, 0.0, 2.0), tensor(0.0, 0.0, 1.0), tensor(0.0, 0.0, 3.0))
    wanted = [math.log(1 + math.exp(-1)), math.log(2), math.log(1 + math.exp(2))]
    assert found.tolist() == pytest.approx(wanted, rel=1e-12)
    assert off_centre(tensor(1.0, 2.0), tensor(-1.0, 0.5)).tolist() == [0.0, 6.25]


def test_pairs_are_ranked_by_scores_and_by_which_answer_is_longer():
    """Right, wrong, tied, right; the tied one is not right. Longer: first and third; shorter: second."""
    found = PairScores(
        np.array([2.0, -1.0, 0.5, 3.0]),
        np.array([1.0, 1.0, 0.5, -1.0]),
        np.array([0.5, 0.0, 0.0, 0.0]),
        np.array([5, 2, 9, 4]),
        np.array([3, 7, 1, 4]),
    )
    judged = judge_scores(found, RewardConfig(centre=0.1))
    losses = [math.log1p(math.exp(-gap)) for gap in (0.5, -2.0, 0.0, 4.0)]
    squares = [9.0, 0.0, 1.0, 4.0]
    assert judged.loss == pytest.approx((sum(losses) + 0.1 * sum(squares)) / 4)
    assert (judged.ranked.num_right, judged.ranked.num_pairs) == (2, 4)
    assert (judged.longer.num_right, judged.longer.num_pairs) == (1, 2)
    assert (judged.shorter.num_right, judged.shorter.num_pairs) == (0, 1)
    assert judged.margin == pytest.approx((1.0 - 2.0 + 0.0 + 4.0) / 4)
    histogram = judged.to_plain()["margins"]
    assert histogram["edges"][0] == -5.0 and histogram["edges"][-1] == 5.0 and len(histogram["counts"]) == 20
    where = [place for place, count in enumerate(histogram["counts"]) for _ in range(count)]
    assert where == [6, 10, 12, 18], "-2, 0, 1 and 4 in bins of a half"
