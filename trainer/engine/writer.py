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
            _name_stage(state_dict)
            self.inner.save(state_dict, path)
            self.files.append(seal(Path(path)))
        except Exception as error:
            self.error = error


def _name_stage(state_dict: Any) -> None:
    """Write the stage where DeepSpeed forgets it: without it no tool of theirs takes the file for ZeRO.

    Its optimizer for stage 1 in bf16 with fp32 accumulation (BF16_Optimizer) shards as stage 2 does, but leaves
    out `zero_stage` (0.19.8), so zero_to_fp32 says "is not a zero checkpoint".
    """
    optimizer = state_dict.get("optimizer_state_dict") if isinstance(state_dict, dict) else None
    if isinstance(optimizer, dict) and "single_partition_of_fp32_groups" in optimizer:
        optimizer.setdefault("zero_stage", 1)


def seal(path: Path) -> WrittenFile:
    """Fsync a written file and return its size and SHA-256, read back from the file system."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return WrittenFile(path, path.stat().st_size, digest)
