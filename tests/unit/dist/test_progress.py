"""Where a process is and how long it may stand there, on a clock of the test's own."""

import pytest

from trainer.dist.progress import WARM_UP_STEPS, Limits, Phase, Progress

LIMITS = Limits(60.0, 5.0, {phase: 100.0 * (n + 1) for n, phase in enumerate(Phase)})


class Clock:
    now = 10.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def progress(clock):
    return Progress(clock)


def test_places_are_in_the_order_of_the_run(progress, clock):
    seen = []
    progress.begin(Phase.load)
    for _ in range(2):
        clock.now += 1
        progress.mark()
        seen.append((progress.place.entry, progress.place.mark, progress.place.since))
    progress.begin(Phase.step, 7)
    seen.append((progress.place.entry, progress.place.mark, progress.place.since))
    assert seen == sorted(seen) == [(0, 1, 11.0), (0, 2, 12.0), (1, 0, 12.0)]
    progress.begin(Phase.save)
    assert progress.place.step == 7, "a save is of the step before it"


def test_what_a_rank_does_alone_moves_the_clock_and_not_the_place(progress, clock):
    progress.begin(Phase.load)
    clock.now += 50
    progress.alive()
    assert (progress.place.mark, progress.place.since) == (0, 60.0)


def test_another_phase_is_told_at_once_and_another_step_is_not(progress):
    told = []
    progress.on_phase = lambda: told.append(progress.place.phase)
    for phase in (Phase.load, Phase.step, Phase.step, Phase.save, Phase.step):
        progress.begin(phase)
    assert told == [Phase.load, Phase.step, Phase.save, Phase.step]


def test_the_end_of_the_first_steps_is_told_at_once(progress):
    """A rank that was stopped right after them kept the limit of loading for the others."""
    told = []
    progress.begin(Phase.step, 1)
    progress.on_phase = lambda: told.append(progress.limit_s(LIMITS))
    for _ in range(WARM_UP_STEPS + 9):
        progress.step_took(1.0)
    assert told == [60.0]


def test_the_first_steps_may_take_as_long_as_loading_and_count_for_nothing(progress):
    progress.begin(Phase.step, 1)
    for _ in range(WARM_UP_STEPS):
        assert progress.limit_s(LIMITS) == LIMITS.of_phase[Phase.load]
        progress.step_took(1000.0)
    progress.step_took(1.0)
    assert progress.limit_s(LIMITS) == 60.0


def test_slow_steps_raise_the_limit_and_one_of_a_hundred_does_not(progress):
    progress.begin(Phase.step, 1)
    for _ in range(WARM_UP_STEPS + 200):
        progress.step_took(20.0)
    assert progress.limit_s(LIMITS) == 100.0
    progress.step_took(400.0)
    progress.step_took(400.0)
    assert progress.limit_s(LIMITS) == 100.0
    progress.step_took(400.0)
    assert progress.limit_s(LIMITS) == 2000.0


def test_phases_have_limits_of_their_own(progress):
    for phase in set(Phase) - {Phase.step}:
        progress.begin(phase)
        assert progress.limit_s(LIMITS) == LIMITS.of_phase[phase]


def test_time_in_which_the_process_was_stopped_does_not_count(progress, clock):
    progress.begin(Phase.load)
    clock.now += 500
    progress.forgive(480)
    assert progress.place.since == 490.0
    progress.forgive(480)
    assert progress.place.since == clock.now, "never in the future"
