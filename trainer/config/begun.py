"""Whether ranks may share a step unevenly: where a run goes on with others than began it. Reads names alone."""

from __future__ import annotations

from pathlib import Path

from trainer.config.schema import RunConfig


def may_be_uneven(config: RunConfig, num_ranks: int) -> bool:
    """Tell whether ranks may share a step unevenly: a run has saved, or nodes of its job are lost.

    Args:
        num_ranks: Those that are to share it.
    """
    cluster = config.cluster
    if num_ranks in {nodes * cluster.ranks_per_node for nodes in cluster.smaller}:
        return True
    checkpoints = Path(config.run_dir) / "checkpoints"
    return any(checkpoints.glob("step-*"))
