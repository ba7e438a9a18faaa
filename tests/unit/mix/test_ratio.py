"""The replay ratio over a run."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.config.replay import RatioSchedule, ReplayConfig, Shift
from trainer.mix.ratio import mean_ratio, ratio_at, starting_ratio


def test_a_given_ratio_wins_then_the_shift_then_the_weights():
    assert starting_ratio(ReplayConfig(ratio=0.1, shift=Shift.strong), [None], [None]) == 0.1
    assert starting_ratio(ReplayConfig(ratio=0.0, shift=Shift.strong), [None], [None]) == 0.0
    assert starting_ratio(ReplayConfig(shift=Shift.strong), [3.0], [1.0]) == 0.25
    assert starting_ratio(ReplayConfig(shift=Shift.weak), [3.0], [1.0]) == 0.05
    assert starting_ratio(ReplayConfig(), [2.0, 1.0], [1.0]) == 0.25
    assert starting_ratio(ReplayConfig(), [None], [None]) == 0.05
    assert starting_ratio(ReplayConfig(), [None], [1.0]) == 0.05
    assert starting_ratio(ReplayConfig(shift=Shift.strong), [None], []) == 0.0


def test_schedules_by_hand():
    assert [ratio_at(ReplayConfig(), 0.2, done) for done in (0.0, 0.5, 0.999)] == [0.2] * 3
    linear = ReplayConfig(schedule=RatioSchedule.linear, end_ratio=0.0)
    assert [ratio_at(linear, 0.2, done) for done in (0.0, 0.25, 0.5)] == pytest.approx([0.2, 0.15, 0.1])
    cosine = ReplayConfig(schedule=RatioSchedule.cosine, end_ratio=0.1)
    assert [ratio_at(cosine, 0.3, done) for done in (0.0, 0.5, 1.0)] == pytest.approx([0.3, 0.2, 0.1])
    front = ReplayConfig(schedule=RatioSchedule.front_loaded, front_frac=0.1)
    assert [ratio_at(front, 0.05, done) for done in (0.0, 0.099, 0.1, 0.9)] == [0.1, 0.1, 0.05, 0.05]
    assert ratio_at(front, 0.6, 0.0) == 0.99
    points = ReplayConfig(schedule=RatioSchedule.piecewise, points=[[0.0, 0.3], [0.5, 0.1], [0.9, 0.0]])
    assert [ratio_at(points, 0.2, done) for done in (0.0, 0.49, 0.5, 0.89, 0.95)] == [0.3, 0.3, 0.1, 0.1, 0.0]


@given(st.sampled_from(list(RatioSchedule)), st.floats(0, 0.99), st.floats(0, 0.99), st.floats(0, 0.999))
def test_every_schedule_stays_a_ratio(schedule, ratio, end, done):
    replay = ReplayConfig(schedule=schedule, end_ratio=end, points=[[0.0, ratio], [0.5, end]])
    assert 0 <= ratio_at(replay, ratio, done) < 1


def test_the_mean_is_over_the_run():
    assert mean_ratio(ReplayConfig(), 0.07) == pytest.approx(0.07)
    front = ReplayConfig(schedule=RatioSchedule.front_loaded, front_frac=0.2)
    assert mean_ratio(front, 0.05) == pytest.approx(0.06)
    cosine = ReplayConfig(schedule=RatioSchedule.cosine, end_ratio=0.1)
    assert mean_ratio(cosine, 0.3) == pytest.approx(0.2)
