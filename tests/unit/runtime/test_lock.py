"""One run a directory."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.errors import CheckpointError
from trainer.runtime.lock import run_lock

HOLDER = """
import sys, time
from pathlib import Path
from trainer.runtime.lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
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
