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
    while True:
        with path.open("a+", encoding="utf-8") as file:
            with contextlib.suppress(OSError):
                _wait_for(file, say)
                if not _is_at(file, path):
                    continue
            try:
                yield
            finally:
                # While it is held: who waits for it sees that it is gone, and makes another.
                with contextlib.suppress(OSError):
                    path.unlink()
            return


def _wait_for(file: TextIO, say: Callable[[str], None]) -> None:
    """Take the lock, and leave this process's name."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        say(file.read().strip() or "another process")
        fcntl.flock(file, fcntl.LOCK_EX)
    _sign(file)


def _is_at(file: TextIO, path: Path) -> bool:
    """Tell whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _sign(file: TextIO) -> None:
    """Leave the holder's name in the file."""
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}")
    file.flush()
