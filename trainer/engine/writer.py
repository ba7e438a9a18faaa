"""A checkpoint writer for DeepSpeed that fsyncs and digests every file, and never throws mid-collective."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A file this rank wrote."""

    path: Path
    num_bytes: int
    sha256: str


class CheckedWriter:
    """Stands in for DeepSpeed's checkpoint engine during one save.

    DeepSpeed's own writer throws on one rank while the others wait in a barrier (a full disk then hangs
    the job). This one remembers the first error; the caller raises it on all ranks after the barrier.
    """

    def __init__(self, inner: Any) -> None:
        """Wrap DeepSpeed's writer."""
        self.inner = inner
        self.files: list[WrittenFile] = []
        self.error: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        """Leave everything but saving to DeepSpeed's writer."""
        return getattr(self.inner, name)

    def save(self, state_dict: Any, path: str) -> None:
        """Write one file, fsync it and take its digest."""
        if self.error is not None:
            return
        try:
            self.inner.save(state_dict, path)
            self.files.append(seal(Path(path)))
        except Exception as error:
            self.error = error


def seal(path: Path) -> WrittenFile:
    """Fsync a written file and return its size and SHA-256, read back from the file system."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return WrittenFile(path, path.stat().st_size, digest)
