"""Tasks and answers during training: when they are done, when they are put off, and what a stop leaves."""

import math
from types import SimpleNamespace

import pytest
import torch

from tests.helpers.clock import Clock
from trainer.checkpoint.state import TrainState
from trainer.config.during import DuringConfig
from trainer.dist.mesh import alone
from trainer.evaluate.tasks.score import TaskScore
from trainer.run.during import Budget, DuringTraining

POLICY = SimpleNamespace(mesh=alone(torch.device("cpu")), module=torch.nn.Linear(1, 1))


class Tasks:
    """Takes so many seconds; scores the step, and asks after every half whether to go on."""

    def __init__(self, clock, seconds, known_s=0.0):
        self._clock, self._seconds, self._known_s = clock, seconds, known_s
        self.base, self.base_s, self.steps = ["known"] if known_s else [], known_s, []

    def measure_base(self, heed):
        if not self._known_s:
            self._clock.sleep(self._seconds)
            self.base_s = self._seconds
        return [TaskScore("a", "acc", 0.25, 0.1, True, 4)]

    def measure(self, step, heed):
        for _ in range(2):
            self._clock.sleep(self._seconds / 2)
            heed()
        self.steps.append(step)
        return [TaskScore("a", "acc", step / 100, None, True, 4), TaskScore("a", "ppl", None, None, False, 4)]


class Told:
    def __init__(self):
        self.records, self.late, self.answered = [], [], []

    def scores(self, state, record):
        self.records.append((state.step, record))

    def answers(self, state, answers):
        self.answered.append(state.step)

    def put_off(self, state, why, is_last):
        self.late.append((state.step, why, is_last))


def follow(
    steps, seconds, step_s=10.0, state=None, stop_at=None, bad=(), num_steps=None, known_s=0.0, **options
):
    """Train `steps` steps of `step_s` seconds; return what was done, told, and the state."""
    clock, told, stop = Clock(), Told(), SimpleNamespace(requested=False)
    tasks = Tasks(clock, seconds, known_s)
    state = state or TrainState()
    during = DuringTraining(
        POLICY,
        DuringConfig(tasks=["a"], **options),
        num_steps or state.step + steps,
        tasks,
        None,
        told,
        stop,
        clock.monotonic,
    )
    during.begin(state)
    for _ in range(steps):
        clock.sleep(step_s)
        state.step += 1
        state.bad_steps_in_a_row = int(state.step in bad)
        if state.step == stop_at:
            clock.at(clock.now + seconds / 4, lambda: setattr(stop, "requested", True))
        during.measure(state, is_stopping=False)
    return tasks, told, state


def test_tasks_are_run_at_their_cadence_and_after_the_last_step():
    tasks, told, _ = follow(10, 1.0, every_steps=4, max_share=1.0)
    assert tasks.steps == [4, 8, 10] and told.late == []
    assert [step for step, _ in told.records] == [0, 4, 8, 10]
    record = told.records[1][1]
    assert record["tasks/a/acc"] == 0.04 and math.isnan(record["tasks/a/ppl"])
    assert "tasks/a/acc_stderr" not in record and told.records[0][1]["tasks/a/acc_stderr"] == 0.1
    assert record["tasks_time_s"] == 1.0 and record["tasks_share"] == pytest.approx(2 / 42)
    assert follow(10, 1.0, every_steps=0, max_share=1.0)[0].steps == [10]


def test_what_would_go_over_the_share_is_put_off_until_it_does_not():
    """The base took 30 s; with the next 30 s a fifth is reached at 300 s, of which 240 s are steps."""
    tasks, told, state = follow(50, 30.0, every_steps=10, max_share=0.2)
    assert tasks.steps[0] == 24 and told.late[0][0] == 10
    assert "evaluate.during.max_share is 0.2" in told.late[0][1]
    # 90 s of 450 s; then 120 s of 600 s, which are 480 s of steps.
    assert tasks.steps[:3] == [24, 36, 48] and [step for step, *_ in told.late] == [10, 30, 40, 50]
    assert told.late[-1][2], "after the last step nothing comes: that is said"
    assert state.during["spent_s"] / state.during["wall_s"] <= 0.2


def test_a_base_that_is_known_tells_how_long_the_first_time_takes_and_costs_nothing():
    tasks, told, _ = follow(40, 30.0, every_steps=10, max_share=0.2, known_s=30.0)
    assert tasks.steps == [12, 24, 36] and told.late[0][0] == 10


def test_a_resumed_run_goes_on_with_its_time_and_with_what_it_owes():
    _, _, state = follow(10, 30.0, every_steps=10, max_share=0.2, num_steps=99)
    assert state.during == Budget(130.0, 30.0, 30.0, True).to_plain()
    tasks, told, _ = follow(20, 30.0, every_steps=10, max_share=0.2, num_steps=99, state=state)
    assert tasks.steps == [24] and told.late[0][0] == 30, "owed since step 10, it is not said a second time"


def test_a_stop_ends_the_tasks_and_the_next_attempt_runs_them_at_the_same_step():
    tasks, told, state = follow(4, 8.0, every_steps=4, max_share=1.0, stop_at=4, num_steps=9)
    assert tasks.steps == [] and told.late == [(4, "the run was told to stop", False)]
    assert state.during["is_owed"]
    tasks, told, state = follow(4, 8.0, every_steps=4, max_share=1.0, state=state, num_steps=9)
    assert tasks.steps == [4, 8] and told.late == [] and not state.during["is_owed"]


def test_a_model_that_is_not_finite_is_not_asked():
    tasks, told, _ = follow(8, 1.0, every_steps=4, max_share=1.0, bad=(4, 5))
    assert tasks.steps == [6, 8] and told.late == [(4, "numbers are not finite", False)]


def test_without_tasks_or_prompts_nothing_is_measured_and_no_time_is_kept():
    during = DuringTraining(POLICY, DuringConfig(), 4, None, None, Told(), None)
    state = TrainState(step=4)
    assert during.begin(state) == during.measure(state, is_stopping=False) == {} and state.during == {}
