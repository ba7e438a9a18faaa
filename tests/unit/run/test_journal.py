"""The journal: what of a run ends up in which record."""

import json
import logging

import pytest

from trainer.checkpoint.state import TrainState
from trainer.metrics.jsonl import Ledger
from trainer.metrics.meter import Meter
from trainer.metrics.sink import Sinks
from trainer.objective.causal_lm.cross_entropy import CausalLMObjective
from trainer.run.journal import Journal, StepTimes
from trainer.run.saver import Saved
from trainer.run.spikes import Spike
from trainer.run.step import StepResult


class Memory:
    def __init__(self):
        self.records, self.status = [], None

    def write(self, step, record):
        self.records.append((step, dict(record)))

    def close(self, status):
        self.status = status


class Mixed:
    """What the journal asks of the mixing."""

    num_steps = 10
    has_replay = True

    def share_reached(self, state):
        return 0.5

    def epochs_by_source(self, state):
        return {"a": 0.5}


@pytest.fixture
def sink():
    return Memory()


@pytest.fixture
def journal(sink, tmp_path):
    return Journal(Sinks([sink]), Ledger(tmp_path / "ledger.jsonl"), Meter(1), Mixed())


def events(tmp_path):
    return [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]


class Base:
    """Stands for a teacher, of which the objective only needs to know that there is one."""


def result(loss=2.0, targets=4, norm=0.5, applied=True, teacher=None, **kl):
    sums = {"nll/a": loss * targets, "nll/b": 0.0, "targets": targets, "targets/a": targets, "targets/b": 0}
    means = CausalLMObjective(["a", "b"], teacher).means
    return StepResult(sums | kl, means, targets, 100.0, norm, applied, 0, num_tokens=64, num_padding=16)


def test_steps_between_log_lines_are_in_the_next_one(journal, sink):
    state = TrainState(step=1)
    journal.step(state, result(3.0, 1), 0.1, StepTimes(1.0, 0.5), is_logged=False)
    assert sink.records == []
    state.step, state.tokens_seen, state.targets_by_source = 2, 128, {"a": 4, "b": 0}
    journal.step(state, result(1.0, 3), 0.2, StepTimes(1.0, 0.0), is_logged=True)
    ((step, record),) = sink.records
    assert step == 2
    assert record["loss"] == record["loss/a"] == pytest.approx((3 + 3) / 4)
    assert "loss/b" not in record
    assert (record["lr"], record["grad_norm"], record["tokens_seen"]) == (0.2, 0.5, 128)
    assert record["tokens_per_s"] == pytest.approx(64) and record["data_wait_frac"] == pytest.approx(0.25)
    assert record["padding_frac"] == pytest.approx(0.25)
    assert record["targets_seen/a"] == 4 and record["skipped_steps"] == 0


def test_evaluations_name_sources_their_mean_and_the_best_step(journal, sink):
    measured = {"eval/a": 1.0, "eval/b": 3.0, "eval_mean": 2.0}
    journal.evaluation(TrainState(step=3, best_step=2), measured, 0.7)
    journal.evaluation(TrainState(step=4), {}, 0.7)
    assert sink.records == [
        (3, {**measured, "eval_time_s": 0.7, "best_step": 2}),
    ]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (result(loss=float("nan")), "non-finite loss"),
        (result(norm=float("inf"), applied=False), "non-finite gradients"),
    ],
)
def test_a_skipped_step_is_said_aloud_and_noted(journal, tmp_path, caplog, bad, said):
    with caplog.at_level(logging.WARNING):
        journal.skipped(TrainState(step=5, skipped_steps=2, bad_steps_in_a_row=1), bad)
    assert said in caplog.text and "Step 5" in caplog.text and "so far: 2, in a row: 1" in caplog.text
    assert ("applied all the same" in caplog.text) == bad.is_applied
    (event,) = events(tmp_path)
    assert (event["event"], event["step"]) == ("skipped", 5)


def test_the_ledger_tells_the_life_of_an_attempt(journal, sink, tmp_path):
    state = TrainState(step=4, tokens_seen=9, data_digest="d", targets_by_source={"a": 2}, attempts=3)
    journal.started(state, world_size=2)
    journal.saved(Saved(state, 1.23456, 0.25, None))
    journal.close(state, "finished")
    started, saved, stopped = events(tmp_path)
    assert (started["event"], started["attempt"], started["world_size"]) == ("started", 3, 2)
    assert (saved["event"], saved["seconds"], saved["data_digest"]) == ("saved", 1.235, "d")
    assert saved["stall_s"] == 0.25
    assert saved["targets_by_source"] == {"a": 2}
    assert (stopped["event"], stopped["reason"], stopped["step"]) == ("stopped", "finished", 4)
    assert sink.status == "finished"


def test_other_ranks_count_and_write_nothing():
    journal = Journal(Sinks(), None, Meter(2), Mixed())
    state = TrainState(step=1)
    journal.started(state)
    journal.step(state, result(), 0.1, StepTimes(1.0, 0.0), is_logged=True)
    journal.skipped(state, result(norm=float("nan")))
    journal.close(state, "finished")


def test_the_divergence_is_reported_beside_the_cross_entropy(journal, sink):
    without = {"kl": 0.0, "kl_tokens": 0, "kl_cost": 0.0}
    divided = result(teacher=Base(), kl=3.0, kl_tokens=2, kl_cost=6.0)
    journal.step(TrainState(step=1), result(teacher=Base(), **without), 1e-3, StepTimes(1.0, 0.0), False)
    journal.step(TrainState(step=2), divided, 1e-3, StepTimes(1.0, 0.0), True)
    record = sink.records[-1][1]
    assert (record["loss"], record["loss/a"], record["kl_replay"]) == (2.0, 2.0, 1.5)
    assert record["loss_total"] == pytest.approx((16.0 + 6.0) / 8)
    journal.step(TrainState(step=3), result(teacher=Base(), **without), 1e-3, StepTimes(1.0, 0.0), True)
    assert not {"kl_replay", "loss_total"} & set(sink.records[-1][1])


def test_spikes_that_are_applied_are_told_three_times_and_counted(journal, tmp_path, caplog):
    """A failure: eleven warnings in a run of 300 steps that was well."""
    with caplog.at_level(logging.WARNING):
        for step in range(1, 7):
            journal.spiked(TrainState(step=step), Spike("grad_norm", 1.27, 0.5), None)
        assert caplog.text.count("a spike:") == 3 and "Step 3: a spike" in caplog.text
        journal.spiked(TrainState(step=7), Spike("grad_norm", 1.27, 0.5, is_refused=True), None)
        journal.close(TrainState(step=8), "finished")
    assert "Step 7: a spike" in caplog.text, "one that changes the run is always told"
    assert "Spikes: 7 in this attempt" in caplog.text
    assert [event["event"] for event in events(tmp_path)].count("spike") == 7


def test_a_gradient_of_exactly_0_is_said_once_and_counted(journal, caplog):
    with caplog.at_level(logging.WARNING):
        journal.step(TrainState(step=1), result(), 50.0, StepTimes(1.0, 0.0), False)
        assert not caplog.text
        for step in (2, 3):
            journal.step(TrainState(step=step), result(norm=0.0), 50.0, StepTimes(1.0, 0.0), False)
        journal.close(TrainState(step=3), "finished")
    assert (
        caplog.text.count("Step 2: the gradient is exactly 0") == 1
        and "optim.lr (it is 50 here)" in caplog.text
    )
    assert (
        "Step 3" not in caplog.text and "2 steps of this attempt had a gradient of exactly 0" in caplog.text
    )
