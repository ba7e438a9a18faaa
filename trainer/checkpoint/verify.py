"""Which checkpoints can be trusted: every file has the size and digest that the manifest claims."""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from trainer.checkpoint.layout import find_checkpoints
from trainer.checkpoint.manifest import Manifest, read_manifest
from trainer.errors import CheckpointError

if TYPE_CHECKING:
    from trainer.dist.mesh import Mesh

PAUSES_S = (0.5, 1.0, 2.0, 4.0)
"""Waits between tries to read where the disk fails: what passes by then is no damage."""
_T = TypeVar("_T")
_FOR_GOOD = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)


def patiently(read: Callable[[], _T]) -> _T:
    """Return what `read` returns, trying again while the disk fails.

    Raises:
        OSError: It still does, or the file is not there.
    """
    for pause_s in PAUSES_S:
        try:
            return read()
        except _FOR_GOOD:
            raise
        except OSError:
            time.sleep(pause_s)
    return read()


def find_damage(folder: Path, manifest: Manifest, share: int = 0, shares: int = 1) -> str | None:
    """Return the first file that is missing, altered or cannot be read, or None.

    Args:
        share: This rank's part of the work when `shares` ranks verify together.
    """
    for index, (name, (num_bytes, digest)) in enumerate(manifest.files.items()):
        if index % shares != share:
            continue
        try:
            found_bytes, found_digest = patiently(functools.partial(_measure, folder / name))
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        if found_bytes != num_bytes:
            return f"{name} has {found_bytes} bytes instead of {num_bytes}"
        if found_digest != digest:
            return f"{name} has another content than was written"
    return None


def inspect(folder: Path, mesh: Mesh | None = None) -> tuple[Manifest | None, str | None]:
    """Return a checkpoint's manifest and what is wrong with it; ranks share the reading. Collective with a group."""
    manifest, damage = None, None
    try:
        manifest = patiently(lambda: read_manifest(folder))
        rank, ranks = (0, 1) if mesh is None else (mesh.rank, mesh.num_ranks)
        damage = find_damage(folder, manifest, rank, ranks)
    except CheckpointError as error:
        damage = str(error)
    except OSError as error:
        damage = f"its manifest cannot be read ({error.strerror})"
    damages = [damage] if mesh is None else mesh.gather(damage)
    return manifest, next((text for text in damages if text), None)


def newest_verified(run_dir: Path, on_damage: Callable[[str], None] = print) -> tuple[Path, Manifest] | None:
    """Return the newest checkpoint that verifies; None when there is none."""
    for folder in find_checkpoints(run_dir):
        manifest, damage = inspect(folder)
        if damage is None and manifest is not None:
            return folder, manifest
        on_damage(f"Checkpoint {folder.name} does not verify: {damage}. Trying the one before.")
    return None


def _measure(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()
