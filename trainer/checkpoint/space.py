"""Refuse to start what the disk cannot hold."""

from __future__ import annotations

import shutil
from pathlib import Path

from trainer.errors import CheckpointError

BYTES_PER_PARAMETER = {"bf16": 14, "fp32": 16}
"""Checkpoint bytes of a trained parameter: weights, master weights and two Adam moments."""


def check_space(run_dir: Path, num_trainable: int, dtype: str, num_kept: int) -> None:
    """Raise when the disk has no room for the checkpoints that will exist at once.

    Args:
        num_kept: Checkpoints kept; one more exists while the next is written.
    """
    need_bytes = (num_kept + 1) * num_trainable * BYTES_PER_PARAMETER[dtype]
    free_bytes = bytes_free(run_dir)
    if free_bytes < need_bytes:
        raise CheckpointError(
            f"`run_dir` must have room for {num_kept + 1} checkpoints ({need_bytes / 1e9:.1f} GB), but "
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
