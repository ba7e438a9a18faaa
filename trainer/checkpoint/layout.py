"""Names and paths of a run directory. Pure."""

from __future__ import annotations

import re
from pathlib import Path

MANIFEST = "manifest.json"
STATE = "state.json"
FINGERPRINT = "fingerprint.safetensors"
DAMAGED = "damaged-"
ABANDONED = "abandoned-"

_STEP = re.compile(r"step-(\d{8})")


def checkpoints_dir(run_dir: Path) -> Path:
    """Return the folder of all checkpoints."""
    return run_dir / "checkpoints"


def step_dir(run_dir: Path, step: int) -> Path:
    """Return the folder of the checkpoint after `step` optimizer steps."""
    return checkpoints_dir(run_dir) / f"step-{step:08d}"


def step_of(folder: Path) -> int | None:
    """Return the step a checkpoint folder is named after; None for anything else."""
    match = _STEP.fullmatch(folder.name)
    return int(match.group(1)) if match else None


def rng_file(rank: int) -> str:
    """Return the file name of a rank's random number generator states."""
    return f"rng-rank-{rank:05d}.json"


def find_checkpoints(run_dir: Path) -> list[Path]:
    """List checkpoint folders, newest first; unfinished staging folders are not among them."""
    parent = checkpoints_dir(run_dir)
    if not parent.is_dir():
        return []
    found = [(step, entry) for entry in parent.iterdir() if (step := step_of(entry)) is not None]
    return [entry for _, entry in sorted(found, reverse=True)]


def find_damaged(run_dir: Path) -> list[Path]:
    """List checkpoints that were set aside."""
    return sorted(checkpoints_dir(run_dir).glob(f"{DAMAGED}step-*"), reverse=True)


def next_abandoned(run_dir: Path) -> Path:
    """Return the next free place for what a run leaves behind."""
    number = 1
    while (run_dir / f"{ABANDONED}{number}").exists():
        number += 1
    return run_dir / f"{ABANDONED}{number}"
