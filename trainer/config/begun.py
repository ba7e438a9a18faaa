"""Whether a run directory holds a run that has saved: then it may go on with other ranks. Reads names alone."""

from __future__ import annotations

from pathlib import Path

from trainer.config.schema import RunConfig


def may_be_uneven(config: RunConfig) -> bool:
    """Tell whether ranks may share a step unevenly: where nodes come and go, or a run goes on with other ranks."""
    checkpoints = Path(config.run_dir) / "checkpoints"
    return config.cluster.elastic is not None or any(checkpoints.glob("step-*"))
