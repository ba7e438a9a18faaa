"""Whatever ends the command or its launcher, no rank trains on; a closed terminal saves."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.dist.test_full_disk import endless, start, stop, wait_for_steps
from tests.helpers.ranks import FOREIGN, ROOT
from tests.helpers.wait import LIMIT_S, wait_until
from trainer.checkpoint.layout import find_checkpoints
from trainer.checkpoint.verify import newest_verified

Started = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def processes() -> Iterator[list[psutil.Process]]:
    found: list[psutil.Process] = []
    yield found
    for process in found:
        if process.is_running():
            process.kill()


def are_gone(processes: list[psutil.Process]) -> bool:
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)


def below(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


@pytest.mark.parametrize("killed", ["command", pytest.param("launcher", marks=pytest.mark.slow)])
def test_nothing_is_left_of_a_run_whose_command_or_launcher_is_killed(workspace, tmp_path, processes, killed):
    """DeepSpeed's launcher and its ranks trained on, holding the GPUs."""
    run_dir = tmp_path / "run"
    words = [*endless(run_dir), "checkpoint.every_steps=1"]
    with start(workspace, tmp_path, *words) as process:
        try:
            wait_for_steps(process, run_dir)
            wait_until(lambda: find_checkpoints(run_dir), "a checkpoint", lambda: process.poll())
            processes += below(process)
            (launcher,) = psutil.Process(process.pid).children()
            assert len(processes) == 5, "the launcher, two ranks, and a warden for each"
            (process if killed == "command" else launcher).kill()
            wait_until(lambda: are_gone(processes), "the end of all", lambda: processes)
            assert process.wait(LIMIT_S) not in (0, 2)
        finally:
            stop(process)
    assert newest_verified(run_dir, pytest.fail) is not None, "what was committed is whole"


def on_a_terminal(workspace: str, run_dir: Path, terminal: int, *words: str) -> subprocess.Popen[str]:
    """Train in a session whose terminal is this one."""

    def take_terminal() -> None:
        os.setsid()
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)

    environment = {key: value for key, value in os.environ.items() if not key.startswith(FOREIGN)}
    line = [sys.executable, "-m", "trainer", "train", "--config", f"{workspace}/config.yaml", *words]
    return subprocess.Popen(
        [*line, f"run_dir={run_dir}"],
        env=environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        preexec_fn=take_terminal,
        text=True,
    )


@pytest.mark.parametrize("num_ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_terminal_that_is_closed_saves_and_the_run_goes_on_from_there(workspace, tmp_path, num_ranks):
    """The signal ended it unsaved, and so would a line that is written to a terminal that is gone."""
    run_dir = tmp_path / "run"
    ours, theirs = pty.openpty()
    words = (*endless(run_dir)[2:], f"cluster.ranks_per_node={num_ranks}", "checkpoint.every_steps=0")
    micro = () if num_ranks == 2 else ("train.micro_batch_size=4",)
    process = on_a_terminal(workspace, run_dir, theirs, *words, *micro)
    os.close(theirs)
    try:
        while (
            not (run_dir / "metrics.jsonl").exists()
            or '"loss"' not in (run_dir / "metrics.jsonl").read_text()
        ):
            os.read(ours, 65536)  # what it prints
            assert process.poll() is None
        os.close(ours)
        assert process.wait(LIMIT_S) == (75 if num_ranks == 1 else process.returncode)
    finally:
        stop(process)
    found = newest_verified(run_dir, pytest.fail)
    assert found is not None and found[1].step > 0
    assert process.returncode not in (0, -signal.SIGHUP)
