"""Decide which checkpoints go, and remove them. The decision is pure."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from trainer.checkpoint.commit import read_manifest
from trainer.checkpoint.layout import MANIFEST, find_checkpoints, step_of
from trainer.errors import CheckpointError


def superseded(
    steps: Sequence[int], keep_last: int, keep_every_steps: int | None, best_step: int | None
) -> list[int]:
    """Return the steps whose checkpoints may go: not among the newest, the kept ones, or the best."""
    newest = sorted(steps, reverse=True)[:keep_last]
    return sorted(
        step
        for step in steps
        if step not in newest
        and step != best_step
        and not (keep_every_steps and step > 0 and step % keep_every_steps == 0)
    )


def prune(run_dir: Path, keep_last: int, keep_every_steps: int | None, best_step: int | None) -> list[int]:
    """Remove superseded checkpoints; only those with a valid manifest count. Rank 0 calls it.

    The manifest goes first, so that a kill in the middle leaves nothing that looks valid.
    """
    valid: dict[int, Path] = {}
    for folder in find_checkpoints(run_dir):
        step = step_of(folder)
        try:
            read_manifest(folder)
        except CheckpointError:
            continue
        if step is not None:
            valid[step] = folder
    gone = superseded(list(valid), keep_last, keep_every_steps, best_step)
    for step in gone:
        (valid[step] / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(valid[step], ignore_errors=True)
    return gone
