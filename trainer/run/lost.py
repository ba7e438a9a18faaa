"""A run whose checkpoints are gone: its ledger knows of saves, and none is there. Loads no torch."""

from __future__ import annotations

from pathlib import Path

from trainer.checkpoint.layout import checkpoints_dir, find_checkpoints, find_damaged, next_abandoned
from trainer.errors import CheckpointError
from trainer.metrics.jsonl import read_events

LEDGER = "ledger.jsonl"


def lost_step(run_dir: Path) -> int | None:
    """Return the last step that a run saved where not one checkpoint is there any more, nor one that was set aside."""
    if find_checkpoints(run_dir) or find_damaged(run_dir):
        return None
    steps = [int(one["step"]) for one in read_events(run_dir / LEDGER) if one["event"] == "saved"]
    return steps[-1] if steps else None


def refuse_lost(run_dir: Path) -> None:
    """Raise where a run would begin at step 0 because its checkpoints are gone.

    Raises:
        CheckpointError: Says what was saved, and how to begin anew on purpose.
    """
    step = lost_step(run_dir)
    if step is not None:
        raise CheckpointError(
            f"`run_dir` must hold a checkpoint to go on from, but {checkpoints_dir(run_dir)} holds none, and "
            f"ledger.jsonl knows that step {step} was saved. Bring them back (was the disk mounted?), or begin at step "
            f"0 on purpose with checkpoint.resume=false, which keeps the records in {next_abandoned(run_dir)}."
        )
