"""When the job of a run is over: what its script wrote, and what the queue says where it wrote nothing."""

import os

import pytest

from launch.attempts import final_code, has_finished, note
from launch.waiting import SETTLE_S, ended_runs
from tests.helpers.clock import Clock

POLL_S = 5.0


@pytest.fixture
def queue(tmp_path, monkeypatch):
    """Put a squeue on the PATH that prints a file, or fails when there is none; return the file."""
    (tmp_path / "bin").mkdir()
    squeue = tmp_path / "bin" / "squeue"
    squeue.write_text(f"#!/bin/sh\ncat {tmp_path}/queue\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    return tmp_path / "queue"


@pytest.fixture
def clock(monkeypatch):
    """Return the clock by which the jobs are waited for."""
    clock = Clock()
    monkeypatch.setattr("launch.waiting.time", clock)
    return clock


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    note(folder, "submitted")
    note(folder, "queued", job=7)
    return folder


def wait(run, clock):
    """Return the seconds until the run has ended."""
    assert list(ended_runs([run], POLL_S)) == [run]
    return clock.now


@pytest.mark.parametrize("code", [0, 2, 3, 4])
def test_a_code_that_the_script_does_not_try_again_ends_a_run_at_once(queue, run, clock, code):
    queue.write_text("7 COMPLETING\n")
    note(run, "started", attempt=1)
    note(run, "ended", attempt=1, code=code)
    assert final_code(run) == code and has_finished(run) == (code == 0)
    assert wait(run, clock) == 0


def test_a_job_that_requeues_itself_has_not_ended(queue, run, clock):
    """It passes through FAILED for as long as it may, waits, runs again and ends."""
    queue.write_text("7 FAILED\n")
    note(run, "started", attempt=1)
    note(run, "ended", attempt=1, code=75)
    assert final_code(run) is None
    clock.at(SETTLE_S - 1, lambda: queue.write_text("7 PENDING\n"))
    clock.at(1000, lambda: queue.write_text("7 RUNNING\n"))
    clock.at(1000, lambda: note(run, "started", attempt=2))
    clock.at(2001, lambda: note(run, "ended", attempt=2, code=0))
    assert wait(run, clock) == 2005 and has_finished(run)


@pytest.mark.parametrize(
    "text", ["7 CANCELLED\n", "7 NODE_FAIL\n", ""], ids=["cancelled", "node lost", "forgotten"]
)
def test_without_a_last_line_the_queue_decides_when_it_has_said_so_for_a_while(queue, run, clock, text):
    queue.write_text(text)
    note(run, "started", attempt=1)
    assert wait(run, clock) == SETTLE_S
    assert not has_finished(run)


def test_a_controller_that_does_not_answer_ends_nothing(queue, run, clock):
    note(run, "started", attempt=1)
    clock.at(1000, lambda: queue.write_text("7 CANCELLED\n"))
    assert wait(run, clock) == 1000 + SETTLE_S


def test_a_script_that_gave_up_has_ended_and_a_new_submission_has_not(run):
    note(run, "gave_up", attempt=4)
    assert final_code(run) == 1 and not has_finished(run)
    note(run, "submitted")
    assert final_code(run) is None


def test_a_run_that_no_script_started_is_known_by_its_ledger(tmp_path):
    assert not has_finished(tmp_path)
    (tmp_path / "ledger.jsonl").write_text(
        '{"event":"started","step":0,"time":1.0}\n{"event":"stopped","step":9,"time":2.0,"reason":"finished"}\n'
    )
    assert has_finished(tmp_path)
