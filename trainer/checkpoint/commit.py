"""The commit protocol: a checkpoint exists only when its manifest does and verifies.

stage -> every rank writes, fsyncs and digests -> gather -> manifest -> put in its place -> pointer.
DeepSpeed's own save writes its `latest` before other ranks are done and neither fsyncs nor renames; a
kill or a full disk then leaves a pointer to a torn checkpoint.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from trainer.checkpoint.layout import MANIFEST, checkpoints_dir, step_dir
from trainer.checkpoint.manifest import Manifest, manifest_text
from trainer.config.snapshot import write_atomic
from trainer.dist.mesh import Mesh
from trainer.errors import CheckpointError
from trainer.runtime.disk import FULL, disk_errno
from trainer.runtime.publish import clear_leftovers, put_in_place, staged

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A file this rank wrote."""

    path: Path
    num_bytes: int
    sha256: str


def seal(path: Path) -> WrittenFile:
    """Fsync a written file and return its size and SHA-256, read back from the file system."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return WrittenFile(path, path.stat().st_size, digest)


class Commit:
    """A checkpoint that is being written: whole in its place after `finish`, or not at all."""

    def __init__(self, run_dir: Path, manifest: Manifest, mesh: Mesh) -> None:
        """Make its staging folder. Collective: every rank.

        Args:
            manifest: Without files; they are gathered from what the ranks report.
        Raises:
            CheckpointError: The first rank cannot make it.
        """
        self._target = step_dir(run_dir, manifest.step)
        self._manifest, self._mesh = manifest, mesh
        self._stack = contextlib.ExitStack()
        made, error = attempt(
            lambda: self._stack.enter_context(staged(self._target)) if mesh.is_first else None
        )
        _agree(mesh, error, self._target)
        self.staging: Path = mesh.broadcast(made)
        """Where all ranks write, without a collective, because another one may have failed by then."""

    def finish(self, written: list[WrittenFile] | None, error: Exception | None) -> Path:
        """Publish what all ranks wrote, if all did, and return its place. Collective: every rank.

        Raises:
            CheckpointError: No space, or any rank failed; the staging folder is gone then.
        """
        mesh, target = self._mesh, self._target
        with self._stack:
            _agree(mesh, error, target)
            files = _gather_files(mesh, written or [], self.staging)
            if mesh.is_first:
                whole = dataclasses.replace(self._manifest, files=files)
                _, error = attempt(lambda: _publish(self.staging, target, whole))
            _agree(mesh, error, target)
        return target


def attempt(act: Callable[[], _T]) -> tuple[_T | None, Exception | None]:
    """Return what a call returns, or what it raised."""
    try:
        return act(), None
    except Exception as error:
        return None, error


def _agree(mesh: Mesh, error: Exception | None, target: Path) -> None:
    """Raise the same sentence on every rank when any rank failed."""
    told = None if error is None else (str(error).rstrip("."), disk_errno(error) in FULL)
    problems = [found for found in mesh.gather(told) if found]
    if not problems:
        return
    fix = "The last checkpoint is untouched."
    if any(is_full for _, is_full in problems):
        fix = "Free space or set run_dir to a larger disk; the last checkpoint is untouched."
    raise CheckpointError(f"The checkpoint {target} could not be written: {problems[0][0]}. {fix}") from error


def _gather_files(mesh: Mesh, written: list[WrittenFile], staging: Path) -> dict[str, tuple[int, str]]:
    mine = {str(f.path.relative_to(staging)): (f.num_bytes, f.sha256) for f in written}
    files: dict[str, tuple[int, str]] = {}
    for part in mesh.gather(mine):
        files |= part
    return dict(sorted(files.items()))


def _publish(staging: Path, target: Path, manifest: Manifest) -> None:
    (staging / MANIFEST).write_text(manifest_text(manifest), encoding="utf-8")
    put_in_place(staging, target)
    _point_to(target)


def _point_to(target: Path) -> None:
    """Leave the name of the newest checkpoint for people; nobody relies on it, so that it may fail."""
    try:
        write_atomic(target.parent / "latest", target.name + "\n")
    except OSError as error:
        _LOG.warning("%s is committed; `latest` still names the one before: %s.", target.name, error)


def remove_staging(run_dir: Path) -> None:
    """Clear what an interrupted save left behind; for who holds the run directory."""
    clear_leftovers(checkpoints_dir(run_dir), older_s=0)
