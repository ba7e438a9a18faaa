"""Refuse to start what the disk cannot hold."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

from trainer.checkpoint.layout import find_checkpoints, step_of
from trainer.config.many import many
from trainer.config.metric import is_task_metric
from trainer.config.train import CheckpointConfig
from trainer.errors import CheckpointError

BYTES_PER_PARAMETER = 12
"""Checkpoint bytes of a trained parameter: float32 weights and two Adam moments."""


@dataclass(frozen=True, slots=True)
class Demand:
    """For how many checkpoints there must be room, and how it comes to that."""

    num: int
    why: str


def demand(
    run_dir: Path,
    options: CheckpointConfig,
    evaluate_every: int,
    goes_on: bool = True,
    num_steps: int | None = None,
) -> Demand:
    """Return what a run may need room for at once: what it keeps and the one in writing, less what is there.

    Never more than the saves that can come: none goes on after the last step.

    Args:
        evaluate_every: Steps between evaluations by step; 0 for the end alone.
        goes_on: From the checkpoints that are there; what is given up makes no room.
        num_steps: Of the run; None where it is not known.
    """
    by_task = options.keep_best and is_task_metric(options.best.metric)
    # A save by time is not evaluated for its own sake: without evaluations by step the last alone can be the best.
    by_step = options.best.metric.startswith("kl") or 0 < evaluate_every < (num_steps or math.inf)
    has_best = options.keep_best and (by_task or options.every_steps is not None or by_step)
    num_kept = options.keep_last + int(has_best)
    found = find_checkpoints(run_dir) if goes_on else []
    # Checkpoints that stay for ever make no room for others, so that none is counted.
    num_there = 0 if options.keep_every_steps else min(len(found), num_kept)
    num = num_kept + 1 - num_there
    if num_steps is not None:
        done = next((step_of(path) or 0 for path in found), 0)
        # The best by a benchmark task is saved where it is measured, whatever the step.
        most = most_saves(None if by_task else options.every_steps, num_steps, done)
        if most < num:
            return Demand(most, f"all that can be written up to step {num_steps}")
    parts = [f"{options.keep_last} by checkpoint.keep_last"]
    parts += ["the best by checkpoint.keep_best"] if has_best else []
    parts += ["one in writing"]
    less = f", less {num_there} there" if num_there else ""
    return Demand(
        num, ", ".join(parts) + less + ("; saves come by time" if options.every_steps is None else "")
    )


def most_saves(every_steps: int | None, num_steps: int, done: int) -> int:
    """Return the checkpoints that a run writes at most after `done` of its steps; by time, one a step."""
    if every_steps == 0:
        return int(done < num_steps)
    every = every_steps or 1
    return max(math.ceil(num_steps / every) - done // every, 0)


def make_room(
    run_dir: Path,
    options: CheckpointConfig,
    evaluate_every: int,
    goes_on: bool,
    num_trainable: int,
    num_steps: int,
) -> None:
    """Remove what a killed save left, and raise when the disk has no room for the checkpoints to come.

    For who holds the run directory; the arguments are those of `demand`.
    """
    from trainer.checkpoint.commit import remove_staging

    remove_staging(run_dir)
    check_space(run_dir, num_trainable, demand(run_dir, options, evaluate_every, goes_on, num_steps))


def check_space(run_dir: Path, num_trainable: int, asked: Demand) -> None:
    """Raise when the disk has no room for the checkpoints that will be written before others are removed."""
    need_bytes = asked.num * num_trainable * BYTES_PER_PARAMETER
    free_bytes = bytes_free(run_dir)
    if free_bytes < need_bytes:
        fewer = ""
        if asked.num > 1:
            fewer = ", lower checkpoint.keep_last, or save once, at the end, with checkpoint.every_steps=0"
        raise CheckpointError(
            f"`run_dir` must have room for {many(asked.num, 'checkpoint')} at once ({_size(need_bytes)}: {asked.why}), "
            f"but the disk of {run_dir} has {_size(free_bytes)} left instead. Choose a larger disk{fewer}."
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
