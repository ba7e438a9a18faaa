"""The commit protocol: a checkpoint exists only when its manifest does and verifies.

stage -> every rank writes, fsyncs and digests -> gather -> manifest -> fsync -> rename -> pointer.
DeepSpeed's own save writes its `latest` before other ranks are done and neither fsyncs nor renames; a
kill or a full disk then leaves a pointer to a torn checkpoint.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from trainer.checkpoint.layout import MANIFEST, checkpoints_dir, step_dir
from trainer.checkpoint.manifest import Manifest, manifest_text
from trainer.dist.mesh import Mesh
from trainer.errors import CheckpointError
from trainer.runtime.disk import FULL, disk_errno

_LOG = logging.getLogger(__name__)


class Written(Protocol):
    """A file a rank wrote: its path, size and digest."""

    @property
    def path(self) -> Path:
        """Where it is."""

    @property
    def num_bytes(self) -> int:
        """Its size."""

    @property
    def sha256(self) -> str:
        """Its digest."""


def commit(run_dir: Path, manifest: Manifest, write: Callable[[Path], list[Written]], mesh: Mesh) -> Path:
    """Write a checkpoint whole or not at all. Collective: every rank.

    Args:
        manifest: Without files; they are gathered from what the ranks report.
        write: Writes this rank's files under the folder it is given and returns them; without a collective, because
            another rank may have failed by then.
    Raises:
        CheckpointError: No space, or any rank failed; the staging folder is gone then.
    """
    target = step_dir(run_dir, manifest.step)
    token = mesh.broadcast(uuid.uuid4().hex[:12])
    staging = target.with_name(f".{target.name}.{token}.tmp")
    error: Exception | None = None
    written: list[Written] = []
    try:
        if mesh.is_first:
            staging.mkdir(parents=True)
    except OSError as problem:
        error = problem
    try:
        _agree(mesh, error, target)
        written, error = _attempt(write, staging)
        _agree(mesh, error, target)
        files = _gather_files(mesh, written, staging)
        if mesh.is_first:
            error = _publish(staging, target, manifest, files)
        _agree(mesh, error, target)
    finally:
        if mesh.is_first:
            shutil.rmtree(staging, ignore_errors=True)
    return target


def _attempt(write: Callable[[Path], list[Written]], staging: Path) -> tuple[list[Written], Exception | None]:
    try:
        return write(staging), None
    except Exception as error:
        return [], error


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


def _gather_files(mesh: Mesh, written: list[Written], staging: Path) -> dict[str, tuple[int, str]]:
    mine = {str(f.path.relative_to(staging)): (f.num_bytes, f.sha256) for f in written}
    files: dict[str, tuple[int, str]] = {}
    for part in mesh.gather(mine):
        files |= part
    return dict(sorted(files.items()))


def _publish(
    staging: Path, target: Path, manifest: Manifest, files: dict[str, tuple[int, str]]
) -> Exception | None:
    try:
        _write_durably(staging / MANIFEST, manifest_text(dataclasses.replace(manifest, files=files)))
        for folder in {(staging / name).parent for name in files} | {staging}:
            _fsync_dir(folder)
        if target.exists():
            shutil.rmtree(target)
        os.rename(staging, target)
        _fsync_dir(target.parent)
    except OSError as error:
        return error
    _point_to(target)
    return None


def _point_to(target: Path) -> None:
    """Leave the name of the newest checkpoint for people; nobody relies on it, so that it may fail."""
    pointer = target.parent / f".latest.{os.getpid()}.tmp"
    try:
        _write_durably(pointer, target.name + "\n")
        os.replace(pointer, target.parent / "latest")
    except OSError as error:
        _LOG.warning("%s is committed; `latest` still names the one before: %s.", target.name, error)
        with contextlib.suppress(OSError):
            pointer.unlink()


def remove_staging(run_dir: Path) -> None:
    """Remove what an interrupted save left behind."""
    for entry in checkpoints_dir(run_dir).glob(".step-*.tmp"):
        shutil.rmtree(entry, ignore_errors=True)


def _write_durably(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _fsync_dir(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
