"""A real small file system, in memory, that can be filled to the last page."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from unittest import SkipTest

PAGE = 4096


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """Mount an empty file system in memory; raises SkipTest where that is not allowed, which pytest takes as a skip."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        raise SkipTest(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def pages_free(folder: Path) -> int:
    """Return the pages that can still be written."""
    return os.statvfs(folder).f_bavail


def fill(folder: Path, left: int) -> Path:
    """Leave so many pages free; return the file that takes the others."""
    filler = folder / "filler"
    with filler.open("wb") as file:
        if pages_free(folder) > left:
            os.posix_fallocate(file.fileno(), 0, PAGE * (pages_free(folder) - left))
    assert pages_free(folder) == left
    return filler
