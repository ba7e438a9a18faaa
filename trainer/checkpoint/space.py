"""Refuse to start what the disk cannot hold."""

from __future__ import annotations

import shutil
from pathlib import Path

from trainer.checkpoint.layout import find_checkpoints
from trainer.errors import CheckpointError

BYTES_PER_PARAMETER = 12
"""Checkpoint bytes of a trained parameter: float32 weights and two Adam moments."""


def num_to_come(run_dir: Path, num_kept: int, keep_every_steps: int | None) -> int:
    """Return the checkpoints for which there must be room: those kept and the next, less those that are there.

    Args:
        keep_every_steps: Checkpoints that stay for ever make no room for others, so that none is counted.
    """
    num_there = 0 if keep_every_steps else len(find_checkpoints(run_dir))
    return num_kept + 1 - min(num_there, num_kept)


def check_space(run_dir: Path, num_trainable: int, num_to_come: int) -> None:
    """Raise when the disk has no room for the checkpoints that will be written before others are removed."""
    need_bytes = num_to_come * num_trainable * BYTES_PER_PARAMETER
    free_bytes = bytes_free(run_dir)
    if free_bytes < need_bytes:
        raise CheckpointError(
            f"`run_dir` must have room for {num_to_come} checkpoints ({need_bytes / 1e9:.1f} GB), but "
            f"{run_dir} has {free_bytes / 1e9:.1f} GB left instead. Choose a larger disk or lower "
            "checkpoint.keep_last."
        )


def bytes_free(path: Path) -> int:
    """Return the bytes that the disk of a path, which need not be there yet, has left."""
    return shutil.disk_usage(_existing(path)).free


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
