"""Held-out pairs, ranked as their loss compares answers."""

import pytest
import torch

from trainer.config.preference import NllMean, PreferenceConfig, PreferenceLoss
from trainer.objective.preference.judged import judge
from trainer.objective.preference.pair_losses import Sides


def sides(sums, lengths, references):
    return Sides(torch.tensor(sums).double(), torch.tensor(lengths), torch.tensor(references).double())


CHOSEN = sides([-4.0, -6.0, -9.0, -2.0], [2, 4, 3, 1], [-5.0, -5.0, -9.0, -2.0])
REJECTED = sides([-5.0, -3.0, -8.0, -2.0], [1, 4, 4, 2], [-5.0, -4.0, -9.0, -2.0])


def test_an_answer_is_ranked_by_what_it_gained_on_the_reference_and_a_tie_is_not_right():
    found = judge(CHOSEN, REJECTED, PreferenceConfig(loss=PreferenceLoss.dpo, beta=0.5))
    assert (found.ranked.num_right, found.ranked.num_pairs) == (1, 4)
    assert (found.longer.num_pairs, found.longer.num_right) == (1, 1)
    assert (found.shorter.num_pairs, found.shorter.num_right) == (2, 0)
    assert found.reward_chosen == 0.5 * (1 - 1 + 0 + 0) / 4 and found.reward_rejected == 0.5 * (0 + 1 + 1) / 4
    assert found.margin == -0.25
    gaps = 0.5 * torch.tensor([1.0, -2.0, -1.0, 0.0])
    assert found.loss == pytest.approx(float(torch.log1p(torch.exp(-gaps)).mean()), abs=1e-7)


def test_a_loss_of_means_ranks_by_means():
    found = judge(CHOSEN, REJECTED, PreferenceConfig(loss=PreferenceLoss.simpo, beta=1.0))
    # -2 over -5, -1.5 below -0.75, -3 below -2, -2 below -1
    assert found.ranked.num_right == 1
    assert found.reward_chosen == pytest.approx(-8.5 / 4)


def test_what_is_not_there_has_no_share():
    one = Sides(*(None if part is None else part[:1] for part in (CHOSEN.sums_P, CHOSEN.lengths_P, None)))
    other = Sides(REJECTED.sums_P[:1], REJECTED.lengths_P[:1], None)
    found = judge(one, other, PreferenceConfig(loss=PreferenceLoss.cpo))
    assert found.shorter.accuracy is found.shorter.interval is None
    assert found.to_plain()["accuracy"] == 1.0 and found.to_plain()["num_shorter"] == 0


def test_the_whole_loss_has_the_cross_entropy_of_chosen_answers_as_a_step_has_it():
    """By tokens: 21 nats over 10; by answers: the mean of 2, 1.5, 3 and 2."""
    for mean, nll in ((NllMean.tokens, 2.1), (NllMean.answers, 2.125)):
        options = PreferenceConfig(loss=PreferenceLoss.cpo, nll_weight=0.5, nll_mean=mean)
        found = judge(CHOSEN, REJECTED, options)
        assert found.whole == pytest.approx(found.loss + 0.5 * nll, abs=1e-12)
    found = judge(CHOSEN, REJECTED, PreferenceConfig(loss=PreferenceLoss.dpo))
    assert found.whole == found.loss
