"""The checkpoint that a person names: last, best or a step."""

from __future__ import annotations

from pathlib import Path

from trainer.checkpoint.layout import STATE, find_checkpoints, step_dir, step_of
from trainer.checkpoint.state import read_state
from trainer.checkpoint.verify import inspect, newest_verified
from trainer.errors import CheckpointError


def find_checkpoint(run_dir: Path, which: str) -> Path:
    """Return the verified checkpoint that `last`, `best` or a step number names.

    Raises:
        CheckpointError: There is none, or it does not verify.
    """
    newest = newest_verified(run_dir)
    if newest is None:
        raise CheckpointError(
            f"`run_dir` must hold a checkpoint that verifies, but {run_dir} holds none instead. Train first."
        )
    if which == "last":
        return newest[0]
    if which == "best":
        step = read_state(newest[0] / STATE).best_step
    elif which.isdigit():
        step = int(which)
    else:
        raise CheckpointError(
            f"`export.checkpoint` must be last, best or a step number, but is '{which}' instead."
        )
    folder = step_dir(run_dir, step if step is not None else -1)
    if not folder.is_dir():
        steps = [str(step_of(entry)) for entry in reversed(find_checkpoints(run_dir))]
        has = f"those of steps {', '.join(steps)}" if len(steps) > 1 else f"that of step {steps[0]}"
        choose = "one of them" if len(steps) > 1 else "it"
        raise CheckpointError(
            f"The checkpoint `{which}` must still be there, but {run_dir} has only {has}. Choose {choose}."
        )
    damage = inspect(folder)[1]
    if damage:
        raise CheckpointError(f"Checkpoint {folder.name} does not verify: {damage}. Choose another.")
    return folder
