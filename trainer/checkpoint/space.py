"""Refuse to start what the disk cannot hold."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

from trainer.checkpoint.layout import find_checkpoints
from trainer.config.many import many
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


def most_saves(every_steps: int | None, num_steps: int, done: int) -> int:
    """Return the checkpoints that a run writes at most after `done` of its steps; by time, one a step."""
    if every_steps == 0:
        return int(done < num_steps)
    every = every_steps or 1
    return max(math.ceil(num_steps / every) - done // every, 0)


def check_space(run_dir: Path, num_trainable: int, num_to_come: int) -> None:
    """Raise when the disk has no room for the checkpoints that will be written before others are removed."""
    need_bytes = num_to_come * num_trainable * BYTES_PER_PARAMETER
    free_bytes = bytes_free(run_dir)
    if free_bytes < need_bytes:
        fewer = ""
        if num_to_come > 1:
            fewer = ", lower checkpoint.keep_last, or save once, at the end, with checkpoint.every_steps=0"
        raise CheckpointError(
            f"`run_dir` must have room for {many(num_to_come, 'checkpoint')} at once ({_size(need_bytes)}), but the "
            f"disk of {run_dir} has {_size(free_bytes)} left instead. Choose a larger disk{fewer}."
        )


def _size(num_bytes: int) -> str:
    """Return a size in the largest unit of which there is one."""
    for unit, word in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if num_bytes >= unit:
            return f"{num_bytes / unit:,.1f} {word}"
    return many(num_bytes, "byte")


def bytes_free(path: Path) -> int:
    """Return the bytes that the disk of a path, which need not be there yet, has left."""
    return shutil.disk_usage(_existing(path)).free


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
