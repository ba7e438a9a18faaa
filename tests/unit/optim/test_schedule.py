"""Learning-rate schedules: their corners, and what all of them promise."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.config.optim import ScheduleConfig, ScheduleName
from trainer.optim.schedule import lr_factor, warmup_steps


def factors(num_steps, **options):
    schedule = ScheduleConfig(**options)
    return [lr_factor(step, num_steps, schedule) for step in range(num_steps)]


def test_warmup_starts_at_one_share_and_reaches_the_peak():
    values = factors(100, name=ScheduleName.constant, warmup_steps=4)
    assert values[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert set(values[4:]) == {1.0}


def test_warmup_steps_win_over_the_share_and_end_with_the_run():
    assert warmup_steps(ScheduleConfig(warmup_frac=0.1), 50) == 5
    assert warmup_steps(ScheduleConfig(warmup_frac=0.1, warmup_steps=7), 50) == 7
    assert warmup_steps(ScheduleConfig(warmup_steps=70), 50) == 50
    assert warmup_steps(ScheduleConfig(warmup_frac=0.0), 50) == 0


def test_cosine_starts_at_the_peak_is_half_way_in_the_middle_and_ends_near_its_floor():
    values = factors(1000, name=ScheduleName.cosine, warmup_frac=0.0, final_frac=0.1)
    assert values[0] == 1.0
    assert values[500] == pytest.approx(0.55)
    assert values[-1] == pytest.approx(0.1, abs=1e-4)


def test_linear_falls_by_the_same_amount_every_step():
    values = factors(100, name=ScheduleName.linear, warmup_steps=0, final_frac=0.0)
    assert values[0] == 1.0 and values[50] == pytest.approx(0.5) and values[-1] == pytest.approx(0.01)
    drops = [a - b for a, b in pairwise(values)]
    assert max(drops) == pytest.approx(min(drops))


def test_wsd_is_flat_until_the_decay_and_falls_linearly_in_it():
    values = factors(100, name=ScheduleName.wsd, warmup_steps=10, decay_frac=0.2, final_frac=0.0)
    assert set(values[9:81]) == {1.0}
    assert values[90] == pytest.approx(0.5) and values[99] == pytest.approx(0.05)


def test_infinite_cools_down_to_its_constant_and_anneals_from_it():
    values = factors(
        100,
        name=ScheduleName.infinite,
        warmup_steps=10,
        cooldown_frac=0.4,
        decay_frac=0.1,
        constant_frac=0.55,
        final_frac=0.1,
    )
    assert values[10] == pytest.approx(1.0)
    assert values[30] == pytest.approx((1 + 0.55) / 2)
    assert values[50:91] == pytest.approx([0.55] * 41)
    assert values[95] == pytest.approx(0.55 * 0.55)
    assert values[99] == pytest.approx(0.55 - 0.9 * 0.55 * 0.9)


SHARES = st.floats(0, 1)


@st.composite
def schedules(draw):
    """Schedules that the configuration check lets through."""
    warmup, decay = draw(st.floats(0, 0.3)), draw(st.floats(0.05, 0.3))
    return ScheduleConfig(
        name=draw(st.sampled_from(ScheduleName)),
        warmup_frac=warmup,
        decay_frac=decay,
        cooldown_frac=draw(st.floats(0, 1 - warmup - decay)),
        constant_frac=draw(SHARES),
        final_frac=draw(SHARES),
    )


@given(schedules(), st.integers(1, 400))
def test_every_schedule_stays_in_zero_to_one_and_wastes_no_first_step(schedule, num_steps):
    values = [lr_factor(step, num_steps, schedule) for step in range(num_steps)]
    assert all(0.0 <= value <= 1.0 for value in values)
    assert values[0] > 0 or schedule.final_frac == 0 or schedule.constant_frac == 0


@given(schedules())
def test_no_schedule_jumps(schedule):
    """A jump of the learning rate is a loss spike: phases must meet where they end."""
    num_steps = 2000
    warmup = warmup_steps(schedule, num_steps)
    values = [lr_factor(step, num_steps, schedule) for step in range(num_steps)]
    allowed = max(1 / max(warmup, 1), 1 / (0.05 * num_steps)) + 1e-9
    if schedule.name is ScheduleName.infinite:
        # The share of the cooldown may be a few steps only; then it is steep by request.
        allowed = max(allowed, 1.6 / max(round(schedule.cooldown_frac * num_steps), 1))
    for before, after in zip(values[warmup:-1], values[warmup + 1 :], strict=True):
        assert abs(after - before) <= allowed
