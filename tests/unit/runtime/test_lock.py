"""One run a directory."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.helpers.wait import wait_until
from trainer.errors import CheckpointError
from trainer.runtime.lock import one_at_a_time, run_lock

HOLDER = """
import sys, time
from pathlib import Path
from trainer.runtime.lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(9999)
"""


def test_a_second_run_in_the_same_directory_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        with pytest.raises(CheckpointError, match=f"in use by process {first.pid} on"), run_lock(tmp_path):
            pass
        first.send_signal(signal.SIGKILL)
        first.wait()
    with run_lock(tmp_path):
        pass


def test_work_is_done_one_at_a_time_and_leaves_no_file(tmp_path: Path) -> None:
    """Eight threads, each with a file description of its own, as processes have."""
    inside, most = [], []

    def work(number: int) -> None:
        with one_at_a_time(tmp_path / "locks" / "a", lambda holder: None):
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.01)
            inside.remove(number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(40)))
    assert set(most) == {1} and len(most) == 40
    assert list((tmp_path / "locks").iterdir()) == []


def test_who_waits_is_told_for_whom(tmp_path: Path) -> None:
    told: list[str] = []
    with ThreadPoolExecutor(1) as pool, one_at_a_time(tmp_path / "a", told.append):
        waiting = pool.submit(lambda: one_at_a_time(tmp_path / "a", told.append).__enter__())
        wait_until(lambda: told or waiting.done(), "a word about who is waited for")
        assert not waiting.done()
    assert told == [f"process {os.getpid()} on {platform.node()}"]
    waiting.result()
