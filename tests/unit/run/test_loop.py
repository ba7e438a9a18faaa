"""The loop with small parts of its own: why a run ends, and what happens when."""

import copy
import dataclasses
import functools
import logging
import math

import pytest
import torch

from trainer.checkpoint.best import BestRule
from trainer.checkpoint.state import TrainState
from trainer.config.metric import Direction
from trainer.config.spikes import SpikeConfig, SpikePolicy
from trainer.dist.mesh import alone
from trainer.dist.progress import PROGRESS
from trainer.engine.policy import Policy
from trainer.errors import CheckpointError
from trainer.metrics.long_work import LongWork
from trainer.mix.loader import StepBatch
from trainer.mix.plan import Cursor
from trainer.objective.causal_lm.cross_entropy import CausalLMObjective
from trainer.run.cadence import Cadence
from trainer.run.heed import GivenUp, heeding, in_step
from trainer.run.loop import train
from trainer.run.parts import RunParts, StopReason
from trainer.run.saver import Saved
from trainer.run.spikes import SpikeWatch
from trainer.runtime.signals import StopFlag


class Engine:
    """Takes steps with the gradient norms it is given; then with norm 1."""

    module = torch.nn.Identity()

    def __init__(self, norms=()):
        self._norms = list(norms)
        self.rates = []

    def set_lr(self, lr):
        self.rates.append(lr)

    def step(self, most=math.inf):
        norm = self._norms.pop(0) if self._norms else 1.0
        return norm, math.isfinite(norm) and norm <= most


class Loader:
    names = ("a",)

    def __init__(self):
        self.taken = []

    def forget(self):
        self.taken.append("forgotten")

    def take(self, step):
        self.taken.append(step)
        after = Cursor(step + 1, [2 * step + 2], [0], 0)
        return StepBatch(step, [], 5, {"a": 5}, {"a": 7}, 16, f"digest-{step}", 0.25, after)


class Work:
    def __init__(self, losses=(), unfit=(), full=(), slow=0):
        self._losses = list(losses)
        self.evaluated, self.saved, self.begun = [], [], []
        self.state, self.unfit, self.full, self.slow = None, unfit, full, slow
        self._pending, self._looks, self.again_at = None, 0, None

    def evaluate(self, state):
        self.evaluated.append(state.step)
        return {"a": self._losses.pop(0)} if self._losses else {}

    def mean(self, losses):
        return sum(losses.values()) / len(losses)

    def drift(self, state):
        return {}

    def preferences(self, state):
        return {}

    def begin(self, state, best_before, in_background):
        assert self._pending is None, "one save after the other"
        if state.step in self.unfit:
            return "the weights are not finite"
        self._pending = Saved(copy.deepcopy(state), 1.0, 0.1, None, best_before)
        self.begun.append((state.step, in_background))

    def reserve(self):
        pass

    @property
    def writing_s(self):
        """A step takes ten seconds."""
        return 0.0 if self._pending is None else 10.0 * self._looks

    @property
    def is_written(self):
        """A write takes as many steps as it is asked this."""
        if self._pending is None:
            return False
        self._looks += 1
        return self._looks % (self.slow + 1) == 0

    def settle(self, stands_on):
        stands_on()
        saved, self._pending = self._pending, None
        if saved is None:
            return None
        if saved.state.step in self.full:
            return dataclasses.replace(saved, problem="The disk is full.")
        self.again_at = None
        self.saved.append(saved.state.step)
        return saved

    def try_again(self, step):
        self.again_at = step + 2
        return self.again_at

    def is_due_again(self, step):
        return self.again_at is not None and step >= self.again_at

    def steer(self, state, kl=None):
        return None

    def go_back(self, most_step):
        self.back_to = most_step
        return TrainState(step=most_step, last_evaluated_step=0) if most_step >= 0 else None

    def restore(self, state):
        self.restored = state.step

    def lr(self, step):
        return 1.0 / (step + 1)


class Report:
    def __init__(self):
        self.logged, self.all_steps, self.skips, self.saves, self.evaluations = [], [], [], [], []
        self.unsaved = []
        self.spikes, self.passed, self.back = [], [], []

    def step(self, state, result, lr, times, is_logged, shares=None):
        assert times.step_s >= times.data_wait_s >= 0
        self.all_steps.append(state.step)
        if is_logged:
            self.logged.append(state.step)
        return {}

    def evaluation(self, state, measured, seconds):
        self.evaluations.append((state.step, measured))

    def chose(self, state, choices, seconds):
        self.chosen = [*getattr(self, "chosen", ()), (state.step, choices)]

    def skipped(self, state, result):
        self.skips.append(state.step)

    def bring_to_disk(self):
        self.on_disk = list(self.all_steps)

    def saved(self, saved):
        assert self.on_disk == self.all_steps, "a checkpoint stands on its records"
        self.saves.append(saved.state.step)

    def spiked(self, state, spike, back_to):
        self.spikes.append((state.step, spike.number, spike.value, spike.is_refused, back_to))

    def passed_over(self, state):
        self.passed.append(state.step)

    def went_back(self, state):
        self.back.append(state.step)

    def not_saved(self, state, why):
        self.unsaved.append((state.step, why))


class Stop:
    """Asks to stop from the n-th look on."""

    def __init__(self, after=10**9):
        self._looks_left = after
        self.save_s = 0.0

    @property
    def requested(self):
        self._looks_left -= 1
        return self._looks_left < 0

    def has_taken(self, **seconds):
        assert all(value >= 0 for value in seconds.values())
        self.save_s = max(self.save_s, seconds.get("save_s", 0.0))


class Tasks:
    """Scores some steps, and what a stopped attempt owes."""

    def __init__(self, scores=None, owed=None):
        self._scores, self._owed = scores or {}, owed or {}
        self.stops = []

    def begin(self, state):
        return dict(self._owed)

    def measure(self, state, is_stopping):
        self.stops += [state.step] if is_stopping else []
        return {"tasks/a/acc": self._scores[state.step]} if state.step in self._scores else {}


LOWEST = BestRule("eval_mean", Direction.minimize, saves_at_once=False)
HIGHEST = BestRule("tasks/a/acc", Direction.maximize, saves_at_once=True)


class Gc:
    def collect_if_due(self, step):
        return False


def cadence(**changes):
    values = {
        "num_steps": 10,
        "log_every": 1,
        "evaluate_every": 0,
        "save_every": 0,
        "saves": True,
        "evaluate_before_save": False,
        "max_non_finite": 2,
        "patience": None,
        "min_delta_nats": 0.0,
    }
    return Cadence(**(values | changes))


def run(
    state=None,
    norms=(),
    losses=(),
    stop=None,
    unfit=(),
    tasks=None,
    best=LOWEST,
    full=(),
    slow=None,
    clock=None,
    spikes=None,
    chooser=None,
    **changes,
):
    """Run the loop; with `slow`, writes go on beside it for so many steps."""
    state = state or TrainState()
    work = Work(losses, unfit, full, slow or 0)
    report, loader, engine = Report(), Loader(), Engine(norms)
    work.state = state
    mesh = alone(torch.device("cpu"))
    policy = Policy(engine, mesh, False)
    objective = CausalLMObjective(["a"])
    during, stop = tasks or Tasks(), stop or Stop()
    parts = RunParts(policy, objective, loader, work, during, work, work, work.lr, report, stop, Gc(), best)
    parts.saves_in_background, parts.clock = slow is not None, clock
    if spikes is not None:
        parts.spikes = SpikeWatch(spikes, mesh)
    parts.chooser = chooser
    reason = train(parts, state, cadence(**changes))
    return reason, state, work, report, loader, engine


def test_a_run_finishes_evaluates_before_and_after_and_saves_at_the_end():
    reason, state, work, report, loader, engine = run()
    assert reason is StopReason.finished
    assert loader.taken == list(range(10)) and report.logged == list(range(1, 11))
    assert work.evaluated == [0, 10] and work.saved == report.saves == [10]
    assert engine.rates == [1.0 / (step + 1) for step in range(10)]
    assert (state.step, state.tokens_seen, state.targets_by_source) == (10, 160, {"a": 50})
    assert state.last_evaluated_step == 10


def test_things_happen_at_their_cadence():
    _, _, work, report, _, _ = run(log_every=4, evaluate_every=3, save_every=5)
    assert report.logged == [4, 8, 10] and report.all_steps == list(range(1, 11))
    assert work.evaluated == [0, 3, 6, 9, 10]
    assert work.saved == [5, 10]


def test_a_checkpoint_is_evaluated_first_when_the_best_is_kept():
    _, _, work, _, _, _ = run(save_every=4, evaluate_before_save=True)
    assert work.saved == [4, 8, 10] and work.evaluated == [0, 4, 8, 10]


def test_a_request_to_stop_saves_at_once_and_ends_as_preempted():
    reason, state, work, report, loader, _ = run(stop=Stop(after=3), evaluate_every=4)
    assert reason is StopReason.preempted
    assert state.step == 4 and loader.taken == [0, 1, 2, 3]
    assert work.saved == [4] and report.logged == [1, 2, 3, 4]
    assert work.evaluated == [0], "evaluating would spend the seconds that are left for saving"


@pytest.mark.parametrize("saves", [True, False])
def test_what_a_signal_is_answered_with_says_where_the_run_is_and_what_becomes_of_it(saves):
    class Told(Stop):
        said = ()

        def __setattr__(self, name, value):
            super().__setattr__(name, value)
            if name == "when":
                super().__setattr__("said", (*self.said, value))

    stop = Told(after=1)
    reason, *_ = run(stop=stop, saves=saves)
    assert reason is StopReason.preempted
    assert stop.said[0].startswith(
        "the run ends and gives up what it measures before its first step; this start"
    )
    then = "a checkpoint is saved" if saves else "nothing is saved (checkpoint.enabled=false)"
    assert f"what is measured after step 2 is given up, {then} and the run ends." in stop.said[-1 - saves]
    assert not saves or stop.said[-1].startswith("once the checkpoint of step 2 is whole")


def test_the_answer_in_a_step_tells_how_far_it_is():
    stop = Stop()
    at = in_step(stop, 3, 10, 64, True)
    at(11)
    assert stop.when == (
        "after step 3 of 10, now in its micro-batch 12 of 64, a checkpoint is saved and the run ends. A second "
        "Ctrl-C ends it at once, without a save."
    )


def test_a_long_step_says_now_and_then_how_far_it_is(caplog, monkeypatch):
    """A step of three and a half minutes said nothing."""
    now_s = [0.0]
    monkeypatch.setattr("trainer.run.heed.LongWork", functools.partial(LongWork, clock=lambda: now_s[0]))
    at = in_step(Stop(), 3, 10, 64, True)
    with caplog.at_level(logging.INFO):
        for index in range(64):
            at(index)
            now_s[0] += 3.0
    assert len(caplog.messages) == 64 * 3 // 45
    assert caplog.messages[0] == "Step 3 of 10, micro-batch 16 of 64: 0m45s so far, about 2m27s left."


def test_a_request_to_stop_in_the_last_step_is_a_finished_run():
    reason, _, work, _, _, _ = run(stop=Stop(after=9))
    assert reason is StopReason.finished and work.saved == [10] and work.evaluated == [0, 10]


def test_without_checkpoints_nothing_is_saved_or_evaluated_for_one():
    changes = {"saves": False, "save_every": 2, "evaluate_before_save": True}
    reason, _, work, report, _, _ = run(**changes)
    assert reason is StopReason.finished
    assert work.saved == report.saves == [] and work.evaluated == [0, 10]
    reason, _, work, *_ = run(stop=Stop(after=3), **changes)
    assert reason is StopReason.preempted and work.saved == []


def test_too_many_bad_steps_in_a_row_end_the_run_without_a_checkpoint():
    reason, state, work, report, _, _ = run(norms=[1.0, math.nan, math.inf, math.nan], save_every=4)
    assert reason is StopReason.non_finite
    assert state.step == 4 and state.skipped_steps == 3 and state.bad_steps_in_a_row == 3
    assert report.skips == [2, 3, 4] and work.saved == []


def test_a_save_that_is_due_among_bad_steps_waits_for_a_sound_one():
    """Three of them once took the places of the last good checkpoints."""
    norms = [1.0, math.nan, math.nan, 1.0, math.nan]
    reason, _, work, report, _, _ = run(norms=norms, save_every=2)
    assert reason is StopReason.finished
    assert work.saved == [4, 6, 8, 10]
    assert report.unsaved == [(2, "1 non-finite step in a row"), (3, "2 non-finite steps in a row")]


def test_a_run_that_ends_among_bad_steps_has_not_finished():
    reason, _, work, report, _, _ = run(norms=[1.0] * 9 + [math.nan], save_every=5)
    assert reason is StopReason.non_finite and work.saved == [5] and report.unsaved[0][0] == 10


def test_a_stop_among_bad_steps_saves_nothing():
    reason, state, work, report, _, _ = run(norms=[1.0, 1.0, math.nan], stop=Stop(after=2), save_every=2)
    assert reason is StopReason.preempted and state.step == 3
    assert work.saved == [2] and report.unsaved == [(3, "1 non-finite step in a row")]


def test_weights_that_are_not_finite_after_sound_steps_end_the_run():
    reason, state, work, report, _, _ = run(unfit=(4,), save_every=2)
    assert reason is StopReason.non_finite and state.step == 4
    assert work.saved == [2] and report.unsaved == [(4, "the weights are not finite")]


def test_what_is_not_saved_is_not_the_best():
    norms = [1.0, 1.0, 1.0, math.nan]
    _, state, work, *_ = run(
        norms=norms, losses=[3.0, 2.0, 1.0, 1.5, 1.4, 1.3], evaluate_every=2, save_every=2
    )
    assert work.saved == [2, 5, 6, 8, 10] and (state.best_value, state.best_step) == (1.3, 10)


def test_steps_go_on_beside_a_save_until_the_next_one_and_the_last_is_waited_for():
    reason, _, work, report, _, _ = run(slow=1, save_every=4)
    assert reason is StopReason.finished
    assert work.begun == [(4, True), (8, True), (10, False)] and work.saved == report.saves == [4, 8, 10]
    # So slow that each is waited for by the next.
    reason, _, work, report, _, _ = run(slow=99, save_every=3)
    assert work.begun == [(3, True), (6, True), (9, True), (10, False)]
    assert work.saved == report.saves == [3, 6, 9, 10]


class Clock:
    """Says how urgent a save is, step by step, and what it was told."""

    def __init__(self, urgencies):
        self._urgencies, self.told = list(urgencies), []

    @property
    def urgency(self):
        return self._urgencies.pop(0)

    def begins(self):
        self.told.append("begins")

    def took(self, stall_s, write_s):
        self.told.append((stall_s, write_s))


def test_a_save_by_time_waits_for_what_is_measured_but_not_twice_as_long():
    clock = Clock([0, 1, 1, 0, 0, 1, 2, 0, 0, 0])
    _, state, work, *_ = run(clock=clock, evaluate_every=3, losses=[9.0, 5.0, 6.0, 7.0, 8.0])
    assert work.saved == [3, 6, 7, 10] and work.evaluated == [0, 3, 6, 9, 10]
    assert (state.best_step, state.best_value) == (3, 5.0)
    assert clock.told == ["begins", (0.1, 1.0)] * 4
    clock = Clock([0, 1, 0, 0, 0, 0, 0, 1, 0, 0])
    assert run(clock=clock)[2].saved == [2, 8, 10]
    clock = Clock([0, 0, 0, 1, 2, 0, 0, 0, 0, 0])
    assert run(clock=clock, evaluate_every=3)[2].saved == [5, 10]


def test_a_signal_finishes_the_save_that_goes_on_and_makes_its_own_at_once():
    reason, _, work, *_ = run(slow=99, save_every=3, stop=Stop(after=4))
    assert reason is StopReason.preempted
    assert work.begun == [(3, True), (5, False)] and work.saved == [3, 5]


def test_time_is_left_for_the_save_that_goes_on_and_the_one_after_it():
    """Each takes a second; where none goes on beside the training, one is to come."""
    for slow, save_s in ((0, 2.0), (None, 1.0)):
        stop = Stop()
        run(slow=slow, save_every=3, stop=stop)
        assert stop.save_s == save_s


def test_a_save_that_takes_longer_than_any_before_is_finished_within_the_time_there_is(monkeypatch):
    """It began at 40 s and is not written: at 70 s twice the 20 s that it was seen to take, and a half, are left."""
    monkeypatch.setattr("trainer.runtime.signals.time.time", lambda: 10.0 * PROGRESS.place.step)
    reason, state, work, *_ = run(
        num_steps=20, slow=99, save_every=4, evaluate_every=0, stop=StopFlag(deadline=100.0)
    )
    assert reason is StopReason.preempted and state.step == 7
    assert work.begun == [(4, True), (7, False)] and work.saved == [4, 7]


def test_a_run_that_ends_among_bad_steps_keeps_the_save_that_goes_on():
    reason, _, work, *_ = run(norms=[1.0] * 4 + [math.nan] * 9, slow=99, save_every=4, max_non_finite=1)
    assert reason is StopReason.non_finite and work.saved == [4]


@pytest.mark.parametrize("slow", [None, 0])
def test_a_save_that_fails_is_told_and_tried_again_while_training_goes_on(slow):
    reason, state, work, report, _, _ = run(
        full=(2, 4, 5), slow=slow, save_every=2, losses=[9.0, 5.0, 4.0, 3.0, 3.5, 3.4], evaluate_every=2
    )
    assert reason is StopReason.finished and work.saved[-1] == 10 and not set(work.saved) & {2, 4, 5}
    told = [step for step, _ in report.unsaved]
    assert told[0] == 2 and set(told) <= {2, 4, 5}
    assert "The disk is full. It is tried again after step" in report.unsaved[0][1]
    assert (state.best_value, state.best_step) == (3.0, 6), "what is not there is not the best"


def test_the_last_save_must_be_written():
    with pytest.raises(CheckpointError, match="The disk is full"):
        run(full=(10,), slow=1)
    with pytest.raises(CheckpointError, match="The disk is full"):
        run(full=(5,), slow=1, stop=Stop(after=4))


def test_bad_steps_apart_are_counted_and_survived():
    norms = [math.nan, 1.0, math.nan, math.nan, 1.0]
    reason, state, _, report, _, _ = run(norms=norms)
    assert reason is StopReason.finished
    assert state.skipped_steps == 3 and state.bad_steps_in_a_row == 0 and report.skips == [1, 3, 4]


def test_no_patience_with_bad_steps_stops_at_the_first():
    reason, state, *_ = run(norms=[1.0, math.nan], max_non_finite=0)
    assert reason is StopReason.non_finite and state.step == 2


def test_bad_steps_in_a_row_go_on_counting_after_a_resume():
    state = TrainState(step=3, bad_steps_in_a_row=2, last_evaluated_step=0)
    reason, state, work, *_ = run(state=state, norms=[math.nan])
    assert reason is StopReason.non_finite and state.step == 4 and work.evaluated == []


def test_a_loss_that_stops_falling_ends_the_run_with_a_checkpoint():
    losses = [3.0, 2.0, 1.0, 1.0, 1.1, 0.0]
    reason, state, work, report, _, _ = run(losses=losses, evaluate_every=1, patience=2)
    assert reason is StopReason.early_stop
    assert state.step == 4 and work.saved == [4]
    assert (state.best_loss, state.evaluations_without_gain) == (1.0, 2)
    assert state.best_step == 4, "what was not saved is not the best checkpoint"
    assert [step for step, _ in report.evaluations] == [0, 1, 2, 3, 4]


def test_a_gain_below_the_least_delta_is_no_gain():
    losses = [3.0, 2.95, 2.9, 2.5]
    reason, state, *_ = run(losses=losses, evaluate_every=1, patience=2, min_delta_nats=0.2)
    assert reason is StopReason.early_stop and state.step == 2 and state.best_loss == 3.0
    assert state.best_step == 2, "the best checkpoint needs no least delta, and the base is none"


def test_a_nan_evaluation_is_never_the_best():
    _, state, *_ = run(losses=[2.0, math.nan, 1.5, math.nan], evaluate_every=4, save_every=4)
    assert (state.best_loss, state.best_value, state.best_step) == (1.5, 1.5, 8)


def test_a_nan_before_the_first_step_does_not_hide_every_later_loss():
    _, state, *_ = run(losses=[math.nan, 2.0, 1.5], evaluate_every=5)
    assert (state.best_loss, state.best_step) == (1.5, 10)


def test_the_best_by_a_held_out_loss_is_one_that_is_saved_anyway():
    """Evaluated and not saved, it could not be exported."""
    _, state, work, *_ = run(losses=[3.0, 1.0, 2.0, 1.5], evaluate_every=3, save_every=6)
    assert work.evaluated == [0, 3, 6, 9, 10] and work.saved == [6, 10]
    assert (state.best_step, state.best_value, state.best_metric) == (6, 2.0, "eval_mean")


def test_the_best_by_a_task_is_saved_when_it_is_found():
    tasks = Tasks({2: 0.5, 4: 0.5, 7: 0.75, 9: math.nan})
    _, state, work, report, *_ = run(tasks=tasks, best=HIGHEST, save_every=4)
    assert work.saved == report.saves == [2, 4, 7, 8, 10]
    assert (state.best_step, state.best_value, state.best_metric) == (7, 0.75, "tasks/a/acc")


def test_a_score_among_bad_steps_is_not_the_best():
    _, state, work, *_ = run(norms=[1.0, math.nan], tasks=Tasks({2: 0.9, 5: 0.1}), best=HIGHEST)
    assert work.saved == [5, 10] and (state.best_step, state.best_value) == (5, 0.1)


def test_a_best_by_another_number_is_forgotten():
    """Both would be compared: a loss of 1.3 with an accuracy."""
    state = TrainState(step=4, last_evaluated_step=4, best_step=2, best_value=1.3, best_metric="eval_mean")
    assert run(state=state, tasks=Tasks({6: 0.5}), best=HIGHEST)[1].best_step == 6
    state = TrainState(step=4, last_evaluated_step=4, best_step=2, best_value=1.3, best_metric="eval_mean")
    assert run(state=state, best=HIGHEST)[1].best_step is None
    state = TrainState(step=4, last_evaluated_step=4, best_step=2, best_value=1.3, best_metric="eval_mean")
    assert run(state=state, losses=[2.0])[1].best_step == 2


def test_what_a_stopped_attempt_owes_may_be_the_best_of_the_step_it_stopped_at():
    tasks = Tasks({6: 0.5})
    _, state, work, *_ = run(stop=Stop(after=5), tasks=tasks, best=HIGHEST)
    assert tasks.stops == [6] and work.saved == [6]
    _, state, work, *_ = run(state=state, tasks=Tasks(owed={"tasks/a/acc": 0.9}), best=HIGHEST)
    assert work.saved == [6, 10] and (state.best_step, state.best_value) == (6, 0.9)


def test_without_a_best_no_checkpoint_is_made_for_it():
    _, state, work, *_ = run(tasks=Tasks({2: 0.5}), best=None, losses=[1.0, 0.5])
    assert work.saved == [10] and state.best_step is None


@pytest.mark.parametrize("step", [0, 4, 9])
def test_a_resumed_run_starts_where_it_stood_and_does_not_evaluate_again(step):
    state = TrainState(step=step, last_evaluated_step=step)
    reason, _, work, _, loader, engine = run(state=state)
    assert reason is StopReason.finished
    assert loader.taken == list(range(step, 10)) and work.evaluated == [10]
    assert engine.rates[0] == 1.0 / (step + 1)


def test_a_finished_run_that_is_resumed_does_nothing():
    state = TrainState(step=10, last_evaluated_step=10)
    reason, _, work, _, loader, _ = run(state=state)
    assert reason is StopReason.finished and loader.taken == [] and work.saved == []


def test_the_digest_of_consumed_data_is_the_same_with_and_without_a_stop():
    whole = run()[1]
    _, stopped, *_ = run(stop=Stop(after=3))
    resumed = run(state=stopped)[1]
    assert len(whole.data_digest) == 32 and whole.data_digest == resumed.data_digest
    assert whole.tokens_seen == resumed.tokens_seen


@pytest.mark.parametrize("num_steps", [1, 6, 7, 12])
@pytest.mark.parametrize("evaluate_every", [0, 1, 3, 4])
@pytest.mark.parametrize("save_every", [0, 2, 5])
@pytest.mark.parametrize("before_save", [True, False])
def test_evaluations_that_are_left_are_those_that_are_due(num_steps, evaluate_every, save_every, before_save):
    cadence = Cadence(num_steps, 1, evaluate_every, save_every, True, before_save, 3, None, 0.0)
    for step in range(1, num_steps + 1):
        due = sum(cadence.evaluate_due(later) for later in range(step, num_steps + 1))
        assert cadence.evaluations_from(step) == due, step


class Interrupted(Work):
    """Is asked to stop in the middle of an evaluation after these steps."""

    def __init__(self, *given_up):
        super().__init__()
        self.given_up = given_up

    def evaluate(self, state):
        if state.step in self.given_up:
            raise GivenUp
        return super().evaluate(state)


@pytest.mark.parametrize(
    ("given_up", "saved"),
    [(0, []), (5, [5]), (10, [10])],
    ids=["of the base", "on the way", "after the last step"],
)
def test_a_signal_in_the_middle_of_an_evaluation_saves_what_was_trained_and_stops(
    monkeypatch, given_up, saved
):
    work = Interrupted(given_up)
    monkeypatch.setattr(f"{__name__}.Work", lambda *_: work)
    reason, state, _, report, _, _ = run(evaluate_every=5)
    assert reason is StopReason.preempted and state.step == given_up
    assert work.saved == report.saves == saved


def test_an_evaluation_that_a_signal_cut_off_after_the_last_step_is_made_up_for(monkeypatch):
    """Otherwise the comparison with the base would have no newest losses."""
    state = TrainState(step=10, last_evaluated_step=5)
    reason, state, work, _, loader, _ = run(state, evaluate_every=5)
    assert reason is StopReason.finished and loader.taken == []
    assert work.evaluated == [10] and state.last_evaluated_step == 10


def test_an_evaluation_that_a_stop_left_out_is_made_up_for_before_the_next_step():
    """The replay ratio, patience and the best checkpoint answered to other evaluations than those of a whole run."""
    whole = run(evaluate_every=4, losses=[3.0, 2.0, 2.5, 1.0])
    assert whole[2].evaluated == [0, 4, 8, 10]
    _, state, work, *_ = run(stop=Stop(after=3), evaluate_every=4, losses=[3.0])
    assert state.step == 4 and work.evaluated == [0]
    _, state, work, *_ = run(state=state, evaluate_every=4, losses=[2.0, 2.5, 1.0])
    assert work.evaluated == [4, 8, 10] and work.saved == [10]
    assert (state.best_loss, state.evaluations_without_gain) == (1.0, 0)
    assert state == whole[1]


def test_a_checkpoint_that_a_stop_did_not_evaluate_may_be_the_best():
    _, state, work, *_ = run(
        stop=Stop(after=3), save_every=4, evaluate_before_save=True, losses=[3.0], best=LOWEST
    )
    assert work.saved == [4] and state.best_step is None
    _, state, work, *_ = run(state=state, save_every=4, evaluate_before_save=True, losses=[1.0, 2.0, 3.0])
    assert work.saved == [4, 8, 10] and (state.best_step, state.best_value) == (4, 1.0)


@pytest.mark.parametrize("last", [2, 4], ids=["a stop came first", "it was killed before it had ended"])
def test_a_run_without_patience_left_takes_no_further_step(last):
    state = TrainState(
        step=4, last_evaluated_step=last, best_loss=1.0, evaluations_without_gain=1 if last == 2 else 2
    )
    reason, state, work, _, loader, _ = run(state=state, losses=[1.5], evaluate_every=2, patience=2)
    assert reason is StopReason.early_stop and loader.taken == []
    assert work.evaluated == work.saved == ([4] if last == 2 else [])


def test_what_heeds_a_signal_raises_between_batches():
    mesh, stop = alone(torch.device("cpu")), Stop(after=2)
    heed = heeding(mesh, stop)
    heed()
    heed()
    with pytest.raises(GivenUp):
        heed()


def spikes(policy, **options):
    return SpikeConfig(**{"policy": policy, "window": 8, "least": 4, "rewind_steps": 3} | options)


ONE_SPIKE = [1.0, 1.0, 1.0, 1.0, 1.1, 50.0]


def test_a_spike_is_said_and_the_run_goes_on():
    reason, state, work, report, *_ = run(norms=ONE_SPIKE, spikes=spikes(SpikePolicy.log))
    assert reason is StopReason.finished and work.saved == [10]
    assert report.spikes == [(6, "grad_norm", 50.0, False, None)]
    assert (state.skipped_steps, max(state.usual["grad_norm"])) == (0, 1.1)


def test_a_spike_is_not_applied_and_its_data_counts_as_consumed():
    reason, state, work, report, loader, _ = run(
        norms=ONE_SPIKE, spikes=spikes(SpikePolicy.skip), save_every=6, max_non_finite=0
    )
    assert reason is StopReason.finished and work.saved == [6, 10], "the model of a refused step is sound"
    assert report.spikes == [(6, "grad_norm", 50.0, True, None)] and report.skips == []
    assert (state.skipped_steps, state.bad_steps_in_a_row, state.tokens_seen) == (1, 0, 160)
    assert loader.taken == list(range(10))


def test_a_spike_is_rewound_and_its_data_passed_over():
    reason, state, work, report, loader, _ = run(
        norms=ONE_SPIKE, spikes=spikes(SpikePolicy.rewind, rewind_skips=2)
    )
    assert reason is StopReason.finished and work.saved == [10]
    assert report.spikes == [(6, "grad_norm", 50.0, False, 2)]
    assert work.back_to == work.restored == 2 and report.back == [2]
    assert loader.taken == [0, 1, 2, 3, 4, 5, "forgotten", 2, 3, 4, 5, 6, 7, 8, 9]
    assert report.passed == [5, 6] and state.passed_over == [5, 6]
    assert (state.rewinds, state.skipped_steps) == (1, 2)


def test_a_run_is_not_rewound_for_ever():
    norms = [*ONE_SPIKE, *[1.0] * 6, 50.0]
    _, state, _, report, *_ = run(norms=norms, spikes=spikes(SpikePolicy.rewind, max_rewinds=1), num_steps=12)
    assert [back for *_, back in report.spikes] == [2, None] and state.rewinds == 1


def test_without_a_checkpoint_to_go_back_to_a_spike_is_said():
    reason, state, _, report, *_ = run(norms=ONE_SPIKE, spikes=spikes(SpikePolicy.rewind, rewind_steps=9))
    assert reason is StopReason.finished and report.spikes[0][-1] is None and state.rewinds == 0


class Chooser:
    """Is due after every fourth step, and stopped when it is asked for the n-th time."""

    def __init__(self, stops_at=10**9):
        self._left = stops_at

    def is_due(self, state):
        made = [choice["step"] for choice in state.choices]
        return state.step > 0 and state.step % 4 == 0 and state.step not in made

    def choose(self, state):
        self._left -= 1
        if self._left == 0:
            raise GivenUp
        state.choices.append({"step": state.step})
        return [state.step]


def test_replay_is_chosen_at_its_cadence_before_a_checkpoint_is_saved():
    _, state, work, report, _, _ = run(save_every=4, chooser=Chooser())
    assert report.chosen == [(4, [4]), (8, [8])] and work.saved == [4, 8, 10]
    assert [choice["step"] for choice in state.choices] == [4, 8]


def test_a_choice_that_a_stop_left_undone_is_made_up_for_before_the_next_step():
    reason, state, work, report, _, _ = run(chooser=Chooser(stops_at=1))
    assert reason is StopReason.preempted and work.saved == [4] and not hasattr(report, "chosen")
    _, state, work, report, loader, _ = run(state, chooser=Chooser())
    assert report.chosen == [(4, [4]), (8, [8])] and loader.taken == [4, 5, 6, 7, 8, 9]
    stopped = run(TrainState(step=4, last_evaluated_step=0), chooser=Chooser(stops_at=1))
    assert stopped[0] is StopReason.preempted and stopped[4].taken == []
    asked = run(stop=Stop(after=3), chooser=Chooser())
    assert asked[0] is StopReason.preempted and asked[1].step == 4 and not asked[1].choices
