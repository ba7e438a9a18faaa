"""Locks that end with the process that holds them, however it ends: one run a directory, one preparation a source."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from trainer.errors import CheckpointError
from trainer.runtime.disk import naming
from trainer.runtime.lease import in_use, leased, newest

_LOG = logging.getLogger(__name__)


LEASE = "PALIMPSEST_LEASE"
"""Variable with the id of the lease that the starter of a rank holds for it."""


@contextlib.contextmanager
def run_lock(run_dir: Path) -> Iterator[str]:
    """Hold the run directory for this process; yield the id of its lease.

    A file lock is asked first where the file system has them: it tells at once of a holder who lives. It is no proof of
    the contrary, as it may hold on one node only; the lease is.

    Ranks:
        Rank 0 only, and who starts it.

    Raises:
        CheckpointError: Another living process trains there, or it cannot be made.
    """
    try:
        run_dir.mkdir(mode=0o750, parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"`run_dir` must be a folder you can write to, but {run_dir} is not: {error.strerror}. Set run_dir."
        ) from error
    given = os.environ.get(LEASE)
    with contextlib.ExitStack() as stack:
        if not _is_given(run_dir, given):
            file = stack.enter_context((run_dir / ".lock").open("a+", encoding="utf-8"))
            if not _locked(file):
                raise _held(run_dir, file)
            _sign(file)
        yield stack.enter_context(leased(run_dir, _LOG.warning, given))


@contextlib.contextmanager
def locked_for_ranks(run_dir: Path) -> Iterator[None]:
    """Hold the run directory for the ranks that are started inside: nobody else comes between.

    Raises:
        CheckpointError: Another living process trains there.
    """
    with run_lock(run_dir) as name:
        os.environ[LEASE] = name
        try:
            yield
        finally:
            os.environ.pop(LEASE, None)


def refuse_in_use(run_dir: Path) -> None:
    """Raise where a living process of this machine is known to train in a directory; changes nothing.

    Raises:
        CheckpointError: One does.
    """
    if not (run_dir / ".lock").exists() or _is_given(run_dir, os.environ.get(LEASE)):
        return
    with contextlib.suppress(OSError), (run_dir / ".lock").open("r", encoding="utf-8") as file:
        if not _locked(file):
            raise _held(run_dir, file)


def _is_given(run_dir: Path, given: str | None) -> bool:
    """Tell whether whoever started this process holds the directory for it."""
    found = newest(run_dir) if given else None
    return found is not None and found.holder is not None and found.holder.id == given


def _locked(file: TextIO) -> bool:
    """Lock a file; false where another process has it, true where the file system knows no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        _LOG.info("No file locks here (%s): the lease alone is asked.", error.strerror)
    return True


def _held(run_dir: Path, file: TextIO) -> CheckpointError:
    file.seek(0)
    return in_use(run_dir, file.read().strip() or "another process")


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
    with naming(file.name):
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
