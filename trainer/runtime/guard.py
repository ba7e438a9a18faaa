"""Processes that never outlive this one, however it ends.

A library that starts processes of its own may leave them behind when its user is killed: those of vLLM 0.32 stay
for ever then, with the memory of the GPU. A watcher waits for the end of a pipe that closes with this process,
and ends everything that bears its mark in the environment.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator

import psutil  # type: ignore[import-untyped, unused-ignore]

MARK = "PALIMPSEST_GUARD"
NUM_ROUNDS = 4
"""Somebody may be starting one more process while the others end."""
PAUSE_S = 0.5

_watchers: list[subprocess.Popen[bytes]] = []


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Mark the processes that are started inside: they are killed when this process is gone."""
    mark = uuid.uuid4().hex
    reader, _ = os.pipe()  # nobody inherits the other end, and it is closed by the end of this process alone
    command = [sys.executable, "-m", "trainer.runtime.guard", mark]
    quiet = subprocess.DEVNULL
    _watchers.append(
        subprocess.Popen(command, stdin=reader, stdout=quiet, stderr=quiet, start_new_session=True)
    )
    os.close(reader)
    os.environ[MARK] = mark
    try:
        yield
    finally:
        del os.environ[MARK]


def watch(mark: str) -> None:
    """Wait until standard input ends, then kill what bears the mark."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.read()
    for _ in range(NUM_ROUNDS):
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == mark:
                    process.kill()
        time.sleep(PAUSE_S)


if __name__ == "__main__":
    watch(sys.argv[1])
