"""A disk that is full, over its quota, read-only or failing, as a sentence with what to change."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from trainer.errors import CheckpointError, TrainerError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
FAILING = frozenset({errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT})
IN_THE_WAY = frozenset(
    {errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG, errno.EACCES, errno.EPERM}
)
"""Something else is in the place of a file or folder, or it belongs to somebody else."""
_IN_WORDS = re.compile(r"\(os error (\d+)\)")
"""How safetensors and tokenizers tell of an error of the operating system."""


@contextlib.contextmanager
def disk_explained(run_dir: Path | None, trains: bool = False) -> Iterator[None]:
    """Turn a disk's error in the block into one that a person can mend.

    Args:
        run_dir: Named where the error names no file.
        trains: Whether the command goes on from a checkpoint when it is given again.
    Raises:
        CheckpointError: The disk is full or fails, or has something else where a file or folder should be.
    """
    try:
        yield
    except TrainerError:
        raise
    except Exception as error:
        number = disk_errno(error)
        named = getattr(error, "filename", None)
        if number is None and named and isinstance(error, OSError) and error.errno in IN_THE_WAY:
            fix = "Move away what is in its place, or let this user have it, then give the same command again"
            if error.errno == errno.ENAMETOOLONG:
                fix = "Give a shorter one"
            raise CheckpointError(
                f"{error.filename2 or named} must be a file or folder that can be read and written here, but is not: "
                f"{os.strerror(error.errno)}. {fix}."
            ) from error
        if number is None:
            raise
        where = named if isinstance(named, str | os.PathLike) else run_dir
        what = f"{where} could not be written" if where is not None else "a file could not be written"
        fix = "Free space or give a larger disk" if number in FULL else "Mend the disk or give another"
        rest = ", then give the same command again"
        if trains:
            rest = "; checkpoints that are there are untouched, and the same command goes on from the last"
        raise CheckpointError(
            f"The disk must take what is written to it, but {what}: {os.strerror(number)}. {fix}{rest}."
        ) from error


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Let an error of writing name its file; the operating system does so only for opening."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def why_not_writable(folder: Path) -> str | None:
    """Return why nothing can be written into a folder; None where it can, also where it has to be made first.

    A file without a name is made in it: rights alone say nothing of root, /proc or a share that maps users.
    """
    there = next((place for place in (folder, *folder.parents) if os.path.exists(place)), Path("."))
    if not there.is_dir():
        return f"{there} is a file"
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        return f"{there} cannot be written to ({error.strerror})"
    return None


def disk_errno(error: BaseException) -> int | None:
    """Return the error number of a disk that is full or fails; None for anything else."""
    number = error.errno if isinstance(error, OSError) else None
    # tokenizers raise a bare Exception.
    if number is None and (type(error) is Exception or type(error).__module__.startswith("safetensors")):
        found = _IN_WORDS.search(str(error))
        number = int(found.group(1)) if found else None
    return number if number in FULL | FAILING else None
