"""The controller that holds the general loss near the base."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.config.replay import ReplayConfig
from trainer.mix.controller import decide

HOLD = ReplayConfig(epsilon=0.05, min_ratio=0.01, max_ratio=0.5, max_change=0.02)


def chosen(rise, previous=0.1, replay=HOLD):
    return decide(replay, previous, {"general": 2.0 + rise}, {"general": 2.0}, ["general"]).ratio


def test_a_loss_that_rose_too_far_raises_the_ratio_in_proportion():
    assert chosen(0.075) == pytest.approx(0.11)
    assert chosen(0.1) == pytest.approx(0.12)
    assert chosen(5.0) == pytest.approx(0.12)


def test_a_loss_near_the_base_lowers_it_and_nothing_moves_in_between():
    assert chosen(0.0) == pytest.approx(0.08)
    assert chosen(-1.0) == pytest.approx(0.08)
    assert chosen(0.0125) == pytest.approx(0.09)
    assert chosen(0.03) == chosen(0.05) == 0.1


def test_the_ratio_stays_between_its_bounds():
    assert chosen(0.0, previous=0.015) == 0.01
    assert chosen(9.0, previous=0.495) == 0.5


@given(st.floats(-5, 5), st.floats(0.01, 0.5))
def test_no_evaluation_moves_it_by_more_than_two_points(rise, previous):
    assert abs(chosen(rise, previous) - previous) <= 0.02 + 1e-12


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_counts_as_the_worst(loss):
    decision = decide(HOLD, 0.1, {"general": loss}, {"general": 2.0}, ["general"])
    assert decision.ratio == pytest.approx(0.12)


KL = ReplayConfig(epsilon=0.05, epsilon_kl=0.2, min_ratio=0.01, max_ratio=0.5, max_change=0.02)


@pytest.mark.parametrize(
    ("rise", "kl", "ratio", "decided_by"),
    [
        (
            0.0,
            0.3,
            0.11,
            "kl",
        ),  # half over its epsilon: half of the largest change, though the loss would lower it
        (0.075, 0.1, 0.11, "loss"),
        (0.075, 0.25, 0.11, "loss"),  # a half against a quarter
        (0.0, 0.15, 0.1, "kl"),  # nothing moves: the KL is between half of its epsilon and all of it
        (0.0, 0.0, 0.08, "loss"),
        (0.0, 0.05, 0.09, "kl"),
        (0.0, math.nan, 0.12, "kl"),
    ],
)
def test_the_worse_of_loss_and_kl_decides(rise, kl, ratio, decided_by):
    decision = decide(KL, 0.1, {"general": 2.0 + rise}, {"general": 2.0}, ["general"], kl)
    assert decision.ratio == pytest.approx(ratio) and decision.decided_by == decided_by
    assert decision.kl_nats is kl


def test_a_kl_that_is_not_asked_for_does_not_count():
    decision = decide(HOLD, 0.1, {"general": 2.0}, {"general": 2.0}, ["general"], 9.0)
    assert decision.ratio == pytest.approx(0.08)
    assert (decision.kl_nats, decision.decided_by) == (None, "loss")
    unmeasured = decide(KL, 0.1, {"general": 2.0}, {"general": 2.0}, ["general"], None)
    assert unmeasured.ratio == pytest.approx(0.08) and unmeasured.decided_by == "loss"


def test_several_sets_count_by_their_mean_and_unknown_ones_not_at_all():
    losses, base = {"a": 2.2, "b": 1.9, "c": 9.0}, {"a": 2.0, "b": 2.0, "c": 1.0}
    decision = decide(HOLD, 0.1, losses, base, ["a", "b", "gone"])
    assert decision.rise_nats == pytest.approx(0.05) and decision.previous == 0.1
