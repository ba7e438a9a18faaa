"""What `palimpsest verify` says of how far a run has come: what is saved, what is left, and what takes it there."""

import dataclasses
import json
import os

import pytest

from launch.status import run_status
from trainer.checkpoint.state import TrainState
from trainer.cli import run_command
from trainer.command.how_far import how_far
from trainer.config.store import compose_config
from trainer.metrics.jsonl import JsonlSink, Ledger
from trainer.runtime.holder import Holder, started
from trainer.runtime.lease import this_machine
from trainer.runtime.log import attempt_dir


@pytest.fixture
def run_dir(tmp_path):
    """Return a run of 12 steps of which six were taken, two seconds each, with 30 s of evaluations to come."""
    folder = tmp_path / "run"
    folder.mkdir()
    sink = JsonlSink(folder / "metrics.jsonl")
    for step in range(1, 7):
        sink.write(step, {"step_time_s": 2.0, "eta_s": 2.0 * (12 - step) + 30})
    sink.close("killed")
    return folder


def write(run_dir, *events):
    ledger = Ledger(run_dir / "ledger.jsonl")
    for event, step, fields in events:
        ledger.write(event, step, **fields)
    ledger.close()


def said(run_dir, step):
    config = compose_config([f"run_dir={run_dir}", "train.global_batch_tokens=1024", "data.seq_len=512"])
    return how_far(config, None if step is None else TrainState(step=step))


BEGUN = ("started", 0, {"num_steps": 12})


def test_a_run_that_was_killed_says_what_is_left_and_how_it_goes_on(run_dir):
    write(run_dir, BEGUN)
    how = (
        "To go on with the data and the model that it began with, give the same command again, or: palimpsest train "
        f"--config {run_dir}/config.yaml"
    )
    assert said(run_dir, 4) == (
        "The run is not finished: 4 of 12 steps are saved, and 2 steps after that are taken again. 8 steps are left "
        f"(8,192 tokens, 0m46s at the pace so far). {how}"
    )
    assert said(run_dir, 5).startswith(
        "The run is not finished: 5 of 12 steps are saved, and 1 step after that is"
    )
    assert "0 of 12 steps are saved, and 6 steps after that are taken again. 12 steps" in said(run_dir, None)
    assert "12 of 12 steps are saved. The comparison with the base and the report are left. To" in said(
        run_dir, 12
    )


def hold(run_dir):
    """Leave what a training of this process leaves while it runs."""
    (run_dir / ".lease").mkdir()
    me = Holder("id", this_machine(), os.getpid(), started(os.getpid()), "", 0)
    (run_dir / ".lease" / "00000001").write_text(json.dumps(dataclasses.asdict(me)))


def test_a_run_that_somebody_trains_needs_nothing(run_dir):
    write(run_dir, BEGUN)
    hold(run_dir)
    assert said(run_dir, 4) == (
        "The run is not finished: 4 of 12 steps are saved, and 2 steps after that are taken. 6 steps are left "
        "(6,144 tokens, 0m42s at the pace so far). It is being trained."
    )
    assert run_status(run_dir).eta_s == 42, "three places told three times"


@pytest.mark.parametrize(
    ("reason", "end"),
    [("finished", "finished"), ("early_stop", "finished: it stopped early, by evaluate.patience")],
)
def test_a_run_that_is_over_says_so(run_dir, reason, end):
    write(run_dir, BEGUN, ("stopped", 6, {"reason": reason}))
    assert said(run_dir, 6) == f"The run is {end}: 6 of 12 steps."
    assert said(run_dir, 4).startswith("The run is not finished: 4 of 12 steps are saved"), (
        "a checkpoint is gone"
    )


def test_a_run_that_ended_before_its_first_step_is_named_by_its_attempts(run_dir, capsys):
    (run_dir / "config.yaml").write_text("name: run\n")
    attempt_dir(run_dir)
    assert run_command(["verify", str(run_dir)]) == 2
    assert (
        f"See `palimpsest status {run_dir}`: 1 attempt ended before the first step."
        in capsys.readouterr().err
    )


def test_a_run_that_is_still_loading_has_nothing_to_verify_and_is_no_failure(run_dir, capsys):
    """A failure: told that its attempt ended before the first step, while `status` said running."""
    (run_dir / "config.yaml").write_text("name: run\n")
    attempt_dir(run_dir)
    hold(run_dir)
    assert run_command(["verify", str(run_dir)]) == 0
    said = capsys.readouterr().out
    assert said == f"{run_dir} is running and before its first step: there is nothing to verify yet.\n"
