"""Locks that end with the process that holds them, however it ends: one run a directory, one preparation a source."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from trainer.errors import CheckpointError


@contextlib.contextmanager
def run_lock(run_dir: Path) -> Iterator[None]:
    """Hold the run directory for this process.

    Ranks:
        Rank 0 only.

    Raises:
        CheckpointError: Another living process trains there.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / ".lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise CheckpointError(
                f"`run_dir` must be used by one run at a time, but {run_dir} is in use by {holder} instead. "
                "Wait for it, stop it, or give another run_dir."
            ) from None
        _sign(file)
        yield


@contextlib.contextmanager
def one_at_a_time(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Wait until no other process holds this file, and hold it; on a disk without locks go on at once.

    For work that is done twice without harm, but in vain.

    Args:
        say: Told who is waited for.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                say(file.read().strip() or "another process")
                fcntl.flock(file, fcntl.LOCK_EX)
            _sign(file)
        yield


def _sign(file: TextIO) -> None:
    """Leave the holder's name in the file."""
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}")
    file.flush()
