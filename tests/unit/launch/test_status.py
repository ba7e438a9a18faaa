"""`palimpsest status`: one row a run, from its files alone."""

import dataclasses
import json
import os
import subprocess
import sys
import time

import pytest

from launch.attempts import note, read_attempts
from launch.status import find_runs, run_status, show_status
from tests.helpers.run_files import write_run
from trainer.checkpoint.layout import step_dir
from trainer.cli import run_command
from trainer.metrics.jsonl import JsonlSink, Ledger
from trainer.runtime.ended import note_end
from trainer.runtime.holder import Holder, started
from trainer.runtime.lease import this_machine
from trainer.runtime.log import EVALUATION, attempt_dir


@pytest.fixture
def begun(tmp_path):
    """Return a run in its second attempt, as a killed first attempt leaves it."""
    run_dir = tmp_path / "runs" / "first"
    run_dir.mkdir(parents=True)
    (run_dir / "config.yaml").write_text("train: {max_steps: 100}\n")
    ledger = Ledger(run_dir / "ledger.jsonl")
    ledger.write("started", 0, attempt=1, num_steps=100)
    ledger.write("saved", 10, seconds=12.5)
    ledger.write("saved", 20, seconds=9.0)
    ledger.write("started", 20, attempt=2, num_steps=100)
    ledger.close()
    sink = JsonlSink(run_dir / "metrics.jsonl")
    for step in range(1, 26):
        sink.write(step, {"loss": 3.0 - step / 100, "tokens_per_s": 1234.4, "eta_s": 3725.0 - step})
    sink.write(25, {"eval_mean": 2.9})
    sink.close("finished")
    note(run_dir, "submitted")
    for attempt in (1, 2):
        note(run_dir, "started", attempt=attempt, job=7, newest="")
        folder = run_dir / "logs" / f"attempt-{attempt}"
        folder.mkdir(parents=True)
    (run_dir / "logs/attempt-1/console.log").write_text(
        "1: [rank 1] Error: `run_dir` must have room.\n0: torch.cuda.OutOfMemoryError: out of memory\nsrun: error: n1\n"
    )
    (run_dir / "logs/attempt-2/console.log").write_text(
        "0: 24/100 loss 2.7 errors are not looked for in the middle\n"
    )
    return run_dir


def test_a_row_tells_attempts_step_loss_speed_and_what_is_left(begun):
    status = run_status(begun)
    assert (status.name, status.state, status.num_attempts) == ("first", "begun", 2)
    assert (status.step, status.num_steps, status.loss) == (25, 100, 2.75)
    assert (status.tokens_per_s, status.eta_s) == (1234.4, 3700.0)
    assert status.last_error == "Error: `run_dir` must have room."


@pytest.mark.parametrize(
    ("console", "error"),
    [
        ("srun: error: node1: task 0: Exited with exit code 1\n0: ValueError: no\n", "ValueError: no"),
        ("0: loading\nsrun: error: node1: task 0: Killed\n", "srun: error: node1: task 0: Killed"),
        ("0: slurmstepd: error: Detected 1 oom_kill event\n", "slurmstepd: error: Detected 1 oom_kill event"),
    ],
)
def test_slurms_own_line_is_told_only_where_the_ranks_said_nothing(begun, console, error):
    (begun / "logs/attempt-2/console.log").write_text(console)
    assert run_status(begun).last_error == error


def test_what_the_checks_of_the_nodes_found_is_told_before_what_the_console_says(begun):
    found = {"check": "clocks", "nodes": ["node2"], "sentence": "`clock of node2` must be right."}
    path = begun / "logs/attempt-2/preflight.json"
    path.write_text(json.dumps({"problems": [found]}))
    assert run_status(begun).last_error == "Error: `clock of node2` must be right."
    path.write_text(json.dumps({"problems": [found, found, found]}))
    assert run_status(begun).last_error == "Error: `clock of node2` must be right. (and 2 more)"
    # Why a node did not come it says itself, if it can.
    (begun / "logs/attempt-2/console.log").write_text(
        "1: [rank 1] Error: `run_dir on node2` must be shared.\n"
    )
    path.write_text(json.dumps({"problems": [{**found, "check": "rendezvous"}]}))
    assert run_status(begun).last_error == "Error: `run_dir on node2` must be shared."
    for text in ('{"problems": []}', "[]", "no JSON"):
        path.write_text(text)
        assert run_status(begun).last_error == "Error: `run_dir on node2` must be shared."


@pytest.mark.parametrize(
    ("code", "state"),
    [
        (0, "finished"),
        (2, "must be mended"),
        (4, "not finite"),
        (75, "stopped, step 20 saved"),
        (137, "failed (137)"),
    ],
)
def test_the_scripts_last_line_is_the_state(begun, code, state):
    for step in (10, 20):
        step_dir(begun, step).mkdir(parents=True)
    note(begun, "ended", attempt=2, job=7, code=code, newest="")
    status = run_status(begun)
    assert status.state == state
    assert (status.last_error is None) == (code == 0)
    note(begun, "gave_up", attempt=3, job=7, newest="")
    assert run_status(begun).state == "gave up"


@pytest.mark.parametrize("has_script", [True, False])
def test_a_run_that_was_stopped_before_it_saved_anything_says_so(tmp_path, has_script):
    """A signal while the base was measured: the ledger tells of a start and of a stop, and no checkpoint is there."""
    run_dir = tmp_path / "early"
    run_dir.mkdir()
    ledger = Ledger(run_dir / "ledger.jsonl")
    ledger.write("started", 0, attempt=1, num_steps=100)
    ledger.write("stopped", 0, reason="preempted")
    ledger.close()
    if has_script:
        note(run_dir, "started", attempt=1, job=7, newest="")
        note(run_dir, "ended", attempt=1, job=7, code=75, newest="")
    assert run_status(run_dir).state == "stopped, nothing saved"
    step_dir(run_dir, 3).mkdir(parents=True)
    assert run_status(run_dir).state == "stopped, step 3 saved"


def test_a_submitted_job_that_never_ran_and_one_without_slurm(tmp_path):
    waiting = tmp_path / "waiting"
    waiting.mkdir()
    (waiting / "config.yaml").write_text("train: {max_epochs: 1}\n")
    assert run_status(waiting).state == "not begun" and run_status(waiting).num_steps is None
    note(waiting, "queued", job=3)
    assert run_status(waiting).state == "submitted"
    assert read_attempts(waiting).job == 3
    assert run_status(write_run(tmp_path / "here")).state == "finished"


def test_the_queue_knows_better_than_the_files(begun, tmp_path, monkeypatch):
    (tmp_path / "squeue").write_text("#!/bin/sh\necho 7 PENDING\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert run_status(begun).state == "pending"


def test_what_the_queue_says_of_a_job_that_left_no_last_line_is_the_state(begun, tmp_path, monkeypatch):
    (tmp_path / "squeue").write_text("#!/bin/sh\necho 7 NODE_FAIL\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert run_status(begun).state == "node fail"
    note(begun, "ended", attempt=2, job=7, code=2, newest="")
    assert run_status(begun).state == "must be mended"
    assert run_status(begun).goes_on is None, "nothing is saved"
    (begun / "checkpoints/step-00000020").mkdir(parents=True)
    assert (run_status(begun).goes_on or "").startswith(
        "Once that is mended, to go on after step 20, give the same"
    )


def test_an_attempt_that_went_on_with_fewer_nodes_is_told_until_the_run_is_submitted_again(begun, capsys):
    assert run_status(begun).shrunk is None
    note(begun, "lost", attempt=2, job=7, nodes="node2", left=1, of=2)
    assert run_command(["status", str(begun)]) == 0
    assert "\nfirst: attempt 3 went on with 1 of 2 nodes: node2 was lost\n" in capsys.readouterr().out
    note(begun, "submitted")
    assert run_status(begun).shrunk is None


def test_a_folder_of_runs_is_a_table(begun, tmp_path, capsys):
    write_run(tmp_path / "runs" / "second")
    assert run_command(["status", str(tmp_path / "runs")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["run", "state", "attempts", "step", "loss", "tokens/s", "left", "ETTR"]
    assert lines[1].split() == ["first", "begun", "2", "25/100", "2.7500", "1,234", "1h01m"]
    assert lines[2].split()[:4] == ["second", "finished", "2", "160/160"] or lines[2].startswith("second")
    assert lines[3] == "first: Error: `run_dir` must have room."
    assert [path.name for path in find_runs(tmp_path)] == ["first", "second"]


def test_the_share_of_the_time_in_steps_that_stayed_is_shown(tmp_path, capsys):
    """Ten steps of two seconds in a hundred."""
    (tmp_path / "config.yaml").write_text("name: a\n")
    end = {"event": "stopped", "step": 10, "time": 1100, "reason": "finished"}
    events = [{"event": "started", "step": 0, "time": 1000}, end]
    (tmp_path / "ledger.jsonl").write_text("".join(json.dumps(one) + "\n" for one in events))
    rows = [{"step": step, "time": 1050 + step, "step_time_s": 2.0} for step in (5, 10)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    assert run_status(tmp_path).effective == 0.2
    assert show_status([str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[-1] == "20%"


@pytest.mark.parametrize(
    "line",
    [
        "0: [rank0]: torch.OutOfMemoryError: CUDA out of memory",
        "[rank 1] torch.OutOfMemoryError: CUDA out of memory",
    ],
)
def test_an_error_is_found_behind_the_labels_of_srun_ours_and_torch(begun, line):
    (begun / "logs/attempt-2/console.log").write_text(f"0: loading\n{line}\n")
    assert run_status(begun).last_error == "torch.OutOfMemoryError: CUDA out of memory"


def test_run_dir_may_be_written_as_elsewhere(begun, capsys):
    assert show_status([f"run_dir={begun}"]) == 0
    assert "25/100" in capsys.readouterr().out


def test_a_folder_without_runs_is_refused(tmp_path, capsys):
    assert run_command(["status", str(tmp_path)]) == 2
    assert "must be given a run directory" in capsys.readouterr().err


def test_a_file_is_refused_with_its_folder(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("name: a\n")
    assert run_command(["status", f"{tmp_path}/config.yaml"]) == 2
    assert f"config.yaml is a file instead. Give {tmp_path}." in capsys.readouterr().err


def test_points_are_shown_with_the_folder_of_their_sweep(tmp_path, capsys):
    for name in ("sweep/001_lr-1", "alone"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.yaml").write_text("name: a\n")
    assert run_command(["status", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "sweep/001_lr-1 " in shown and "\nalone " in f"\n{shown}"


def test_no_torch_is_loaded(begun):
    code = (
        "import sys\nfor name in ('torch', 'transformers', 'deepspeed'):\n    sys.modules[name] = None\n"
        "from trainer.cli import run_command\nassert run_command(['status', sys.argv[1]]) == 0\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(begun)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def leased_by(run_dir, **changes):
    """Write the lease of a holder: this process, but for the changes."""
    mine = Holder("id", this_machine(), os.getpid(), started(os.getpid()), "", 0)
    holder = dataclasses.asdict(dataclasses.replace(mine, **changes))
    (run_dir / ".lease").mkdir(exist_ok=True)
    (run_dir / ".lease" / "00000001").write_text(json.dumps(holder))


def test_a_run_that_nobody_trains_any_more_has_died(begun):
    leased_by(begun)
    assert run_status(begun).state == "running"
    leased_by(begun, started="1")
    status = run_status(begun)
    assert status.state == "died, nothing saved" and status.eta_s is None
    elsewhere = dataclasses.replace(this_machine(), host="other")
    leased_by(begun, machine=elsewhere)
    assert run_status(begun).state == "running"
    os.utime(begun / ".lease" / "00000001", (1, 1))
    assert run_status(begun).state == "died, nothing saved"


def test_a_run_that_died_says_what_is_saved_and_how_it_goes_on(begun, capsys):
    leased_by(begun, started="1")
    step_dir(begun, 20).mkdir(parents=True)
    assert run_status(begun).state == "died, step 20 saved"
    assert run_command(["status", str(begun)]) == 0
    how = "To go on after step 20, give the same command again, or: palimpsest"
    assert f"{how} train --config {begun}/config.yaml" in " ".join(capsys.readouterr().out.split())
    (begun / "job.sh").write_text("")
    assert (run_status(begun).goes_on or "").startswith(f"{how} submit with the same words")
    leased_by(begun)
    assert run_status(begun).goes_on is None, "somebody trains it"


@pytest.fixture
def attempted(tmp_path):
    """Return a run whose first attempt has a folder of logs, and no line in a ledger yet."""
    run_dir = tmp_path / "early"
    attempt_dir(run_dir)
    (run_dir / "config.yaml").write_text("train: {max_steps: 4}\n")
    return run_dir


def test_a_run_that_ended_before_its_first_step_says_so_with_the_sentence_and_when(attempted, capsys):
    """It was "not begun", after one attempt, without an error."""
    note_end(attempted / "logs/attempt-1", 2, "Error: `model.path` must have weights:\n  - none\n  - is here")
    status = run_status(attempted)
    assert (status.state, status.num_attempts, status.step) == ("must be mended", 1, 0)
    assert show_status([str(attempted)]) == 0
    said = capsys.readouterr().out
    day = time.strftime("%Y-%m-%d %H:")
    assert f"\nearly: ended {day}" in said
    assert " with exit code 2: Error: `model.path` must have weights:\n  - none\n  - is here\n" in said


@pytest.mark.parametrize(
    ("code", "state"),
    [(1, "failed (1)"), (4, "not finite"), (75, "stopped, nothing saved"), (137, "failed (137)")],
)
def test_other_ends_before_the_first_step_are_told_too(attempted, code, state):
    note_end(attempted / "logs/attempt-1", code, "")
    assert run_status(attempted).state == state
    note_end(attempted / "logs/attempt-1", 0, "")
    assert run_status(attempted).state == state, "the first to know is right"


def test_a_run_that_loads_its_model_is_running_and_one_that_was_killed_meanwhile_has_died(attempted):
    leased_by(attempted)
    assert run_status(attempted).state == "running"
    leased_by(attempted, started="1")
    assert run_status(attempted).state == "died, nothing saved"


def test_an_attempt_that_goes_on_after_a_stop_is_running_before_its_ledger_says_so(attempted):
    ledger = Ledger(attempted / "ledger.jsonl")
    ledger.write("started", 0, attempt=1, num_steps=4)
    ledger.write("stopped", 2, reason="preempted")
    ledger.close()
    note_end(attempted / "logs/attempt-1", 75, "Stopped by a signal.")
    assert run_status(attempted).state == "stopped, nothing saved"
    attempt_dir(attempted)
    leased_by(attempted)
    status = run_status(attempted)
    assert (status.state, status.num_attempts, status.ended) == ("running", 2, None)


def test_an_evaluation_is_no_attempt(attempted):
    assert attempt_dir(attempted, EVALUATION) == attempted / "logs" / "evaluation-1"
    assert run_status(attempted).num_attempts == 1
