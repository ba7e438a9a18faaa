"""Whether a run directory holds a run that has saved: then it may go on with other ranks. Reads names alone."""

from __future__ import annotations

from pathlib import Path

from trainer.config.schema import RunConfig


def may_be_uneven(config: RunConfig) -> bool:
    """Tell whether ranks may share a step unevenly: a run may go on with others than began it."""
    checkpoints = Path(config.run_dir) / "checkpoints"
    return any(checkpoints.glob("step-*"))
