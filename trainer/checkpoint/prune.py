"""Decide which checkpoints go, and remove them. The decision is pure."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.checkpoint.layout import MANIFEST, find_checkpoints
from trainer.checkpoint.manifest import Manifest, read_manifest
from trainer.config.fence import check_publish
from trainer.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Retention:
    """What is kept of a run."""

    keep_last: int
    keep_every_steps: int | None
    best_step: int | None


def superseded(
    found: Sequence[tuple[int, str]], committed: tuple[int, str], retention: Retention
) -> list[int]:
    """Return the steps whose checkpoints may go: not among the newest, the kept ones, or the best.

    Args:
        found: Step and run of every checkpoint with a valid manifest.
        committed: Those of the one that was committed just now, which always stays. What is of another run, or
            newer, is not of its line: it neither goes nor counts.
    """
    last, run = committed
    line = sorted({step for step, whose in found if whose == run and step <= last} | {last})
    newest = line[-max(retention.keep_last, 1) :]
    every = retention.keep_every_steps
    return [
        step
        for step in line
        if step not in newest
        and step != retention.best_step
        and not (every and step > 0 and step % every == 0)
    ]


def prune(run_dir: Path, committed: Manifest, retention: Retention) -> list[int]:
    """Remove what a committed checkpoint supersedes; only those with a valid manifest count. Rank 0 calls it.

    The manifest goes first, so that a kill in the middle leaves nothing that looks valid.

    Raises:
        CheckpointError: Another run has taken the directory over.
    """
    valid: dict[tuple[int, str], Path] = {}
    for folder in find_checkpoints(run_dir):
        try:
            manifest = read_manifest(folder)
        except (CheckpointError, OSError):
            continue
        valid[manifest.step, manifest.lineage.run] = folder
    run = committed.lineage.run
    gone = superseded(list(valid), (committed.step, run), retention)
    for step in gone:
        check_publish(valid[step, run])
        (valid[step, run] / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(valid[step, run], ignore_errors=True)
    return gone
