"""The commit protocol: a checkpoint exists only when its manifest does and verifies.

stage -> every rank writes, fsyncs and digests -> gather -> manifest -> fsync -> rename -> pointer.
DeepSpeed's own save writes its `latest` before other ranks are done and neither fsyncs nor renames; a
kill or a full disk then leaves a pointer to a torn checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from trainer.checkpoint.layout import MANIFEST, checkpoints_dir, find_checkpoints, step_dir
from trainer.dist.group import Group
from trainer.errors import CheckpointError

FORMAT = 1


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


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything a checkpoint claims about itself."""

    step: int
    world_size: int
    zero_stage: int
    config_digest: str
    data_digest: str
    files: dict[str, tuple[int, str]]
    facts: dict[str, Any]


def commit(run_dir: Path, manifest: Manifest, write: Callable[[Path], list[Written]], group: Group) -> Path:
    """Write a checkpoint whole or not at all. Collective: every rank.

    Args:
        manifest: Without files; they are gathered from what the ranks report.
        write: Writes this rank's files under the folder it is given and returns them.
    Raises:
        CheckpointError: No space, or any rank failed; the staging folder is gone then.
    """
    target = step_dir(run_dir, manifest.step)
    token = group.broadcast(uuid.uuid4().hex[:12])
    staging = target.with_name(f".{target.name}.{token}.tmp")
    error: Exception | None = None
    written: list[Written] = []
    try:
        if group.is_first:
            staging.mkdir(parents=True)
    except OSError as problem:
        error = problem
    try:
        _agree(group, error, target)
        written, error = _attempt(write, staging)
        _agree(group, error, target)
        files = _gather_files(group, written, staging)
        if group.is_first:
            error = _publish(staging, target, manifest, files)
        _agree(group, error, target)
    finally:
        if group.is_first:
            shutil.rmtree(staging, ignore_errors=True)
    return target


def _attempt(write: Callable[[Path], list[Written]], staging: Path) -> tuple[list[Written], Exception | None]:
    try:
        return write(staging), None
    except Exception as error:
        return [], error


def _agree(group: Group, error: Exception | None, target: Path) -> None:
    """Raise the same sentence on every rank when any rank failed."""
    problems = [p for p in group.gather(None if error is None else str(error)) if p]
    if not problems:
        return
    no_space = any("No space left" in problem or "Disk quota" in problem for problem in problems)
    fix = (
        "Free space or set run_dir to a larger disk; the last checkpoint is untouched."
        if no_space
        else "The last checkpoint is untouched."
    )
    raise CheckpointError(f"The checkpoint {target} could not be written: {problems[0]}. {fix}") from error


def _gather_files(group: Group, written: list[Written], staging: Path) -> dict[str, tuple[int, str]]:
    mine = {str(f.path.relative_to(staging)): (f.num_bytes, f.sha256) for f in written}
    files: dict[str, tuple[int, str]] = {}
    for part in group.gather(mine):
        files |= part
    return dict(sorted(files.items()))


def _publish(
    staging: Path, target: Path, manifest: Manifest, files: dict[str, tuple[int, str]]
) -> Exception | None:
    try:
        record = {
            "format": FORMAT,
            "step": manifest.step,
            "world_size": manifest.world_size,
            "zero_stage": manifest.zero_stage,
            "config_digest": manifest.config_digest,
            "data_digest": manifest.data_digest,
            "files": {name: list(entry) for name, entry in files.items()},
            "facts": manifest.facts,
        }
        body = json.dumps(record, indent=2, sort_keys=True)
        seal = hashlib.sha256(body.encode()).hexdigest()
        _write_durably(staging / MANIFEST, json.dumps({"sha256": seal, "manifest": record}, indent=2))
        for folder in {(staging / name).parent for name in files} | {staging}:
            _fsync_dir(folder)
        if target.exists():
            shutil.rmtree(target)
        os.rename(staging, target)
        _fsync_dir(target.parent)
        pointer = target.parent / f".latest.{os.getpid()}.tmp"
        _write_durably(pointer, target.name + "\n")
        os.replace(pointer, target.parent / "latest")
    except OSError as error:
        return error
    return None


def read_manifest(folder: Path) -> Manifest:
    """Read a manifest and check its own seal.

    Raises:
        CheckpointError: Missing, torn or altered.
    """
    path = folder / MANIFEST
    try:
        outer = json.loads(path.read_text(encoding="utf-8"))
        record = outer["manifest"]
        body = json.dumps(record, indent=2, sort_keys=True)
        if hashlib.sha256(body.encode()).hexdigest() != outer["sha256"] or record["format"] != FORMAT:
            raise ValueError("its digest does not match")
        files = {name: (int(entry[0]), str(entry[1])) for name, entry in record["files"].items()}
        return Manifest(
            step=record["step"],
            world_size=record["world_size"],
            zero_stage=record["zero_stage"],
            config_digest=record["config_digest"],
            data_digest=record["data_digest"],
            files=files,
            facts=record["facts"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not a valid manifest: {error}.") from error


def find_damage(folder: Path, manifest: Manifest, share: int = 0, shares: int = 1) -> str | None:
    """Return the first file that is missing or altered, or None.

    Args:
        share: This rank's part of the work when `shares` ranks verify together.
    """
    for index, (name, (num_bytes, digest)) in enumerate(manifest.files.items()):
        if index % shares != share:
            continue
        path = folder / name
        try:
            if path.stat().st_size != num_bytes:
                return f"{name} has {path.stat().st_size} bytes instead of {num_bytes}"
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    return f"{name} has another content than was written"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None


def newest_verified(
    run_dir: Path, group: Group | None = None, on_damage: Callable[[str], None] = print
) -> tuple[Path, Manifest] | None:
    """Return the newest checkpoint that verifies; all ranks share the reading. Collective with a group."""
    candidates = find_checkpoints(run_dir)
    if group is not None:
        candidates = group.broadcast(candidates)
    for folder in candidates:
        manifest, damage = None, None
        try:
            manifest = read_manifest(folder)
            rank, ranks = (0, 1) if group is None else (group.rank, group.world_size)
            damage = find_damage(folder, manifest, rank, ranks)
        except CheckpointError as error:
            damage = str(error)
        damages = [damage] if group is None else group.gather(damage)
        found = next((text for text in damages if text), None)
        if found is None and manifest is not None:
            return folder, manifest
        if group is None or group.is_first:
            on_damage(f"Checkpoint {folder.name} does not verify: {found}. Trying the one before.")
    return None


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
