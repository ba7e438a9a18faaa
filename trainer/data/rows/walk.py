"""Walks a folder of data: links are followed, every folder once, and what is not read is kept by name."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from trainer.errors import DataError


@dataclass(slots=True)
class Walked:
    """What lies in a folder; files as whole paths, the rest by their path below the folder."""

    files: list[Path] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    """Links to a folder that was walked already; those that lead back up are among them."""


def walk_folder(folder: Path, is_read: Callable[[Path], bool]) -> Walked:
    """List the files of a folder and of all below it, sorted by path; hidden ones are passed over.

    Raises:
        DataError: If a folder cannot be opened, or a link that should be read leads nowhere.
    """
    walked = Walked()
    seen: set[tuple[int, int]] = set()
    real, linked = deque([folder]), deque[Path]()
    while real or linked:
        # Real folders first: where a link leads to a folder beside it, the folder keeps its name.
        path = real.popleft() if real else linked.popleft()
        stat = path.stat()
        if (stat.st_dev, stat.st_ino) in seen:
            walked.repeated.append(str(path.relative_to(folder)))
            continue
        seen.add((stat.st_dev, stat.st_ino))
        for entry in _entries(path):
            if entry.is_dir():
                (linked if entry.is_symlink() else real).append(entry)
            elif not is_read(entry):
                walked.unread.append(str(entry.relative_to(folder)))
            elif entry.is_file():
                walked.files.append(entry)
            else:
                raise DataError(
                    f"'{entry}' must be a file, but is a link that leads nowhere, or no plain file, instead. "
                    "Mend or remove it."
                )
    walked.files.sort()
    walked.unread.sort()
    return walked


def _entries(path: Path) -> list[Path]:
    try:
        return sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(
            f"'{path}' must be a folder that can be read, but is not: {error.strerror}."
        ) from error
