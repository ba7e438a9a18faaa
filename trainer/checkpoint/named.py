"""The checkpoint that a person names: last, best or a step."""

from __future__ import annotations

from pathlib import Path

from trainer.checkpoint.layout import STATE, find_checkpoints, step_dir, step_of
from trainer.checkpoint.state import read_state
from trainer.checkpoint.verify import inspect, newest_verified
from trainer.errors import CheckpointError

KEY = "export.checkpoint"


def why_not_named(run_dir: Path, which: str, key: str = KEY) -> str | None:
    """Return why no checkpoint has a name, by the names of folders alone; None where one may have it.

    Args:
        key: What names it.
    """
    steps = _saved(run_dir)
    if not steps:
        return (
            f"`run_dir` must hold a checkpoint that verifies, but {run_dir} holds none instead. Train first."
        )
    if which in ("last", "best"):
        return None
    if not which.isdigit():
        return f"`{key}` must be last, best or a step number, but is '{which}' instead."
    return None if step_dir(run_dir, int(which)).is_dir() else _not_saved(steps, key, which)


def find_checkpoint(run_dir: Path, which: str, key: str = KEY) -> Path:
    """Return the verified checkpoint that `last`, `best` or a step number names.

    Args:
        key: What names it.
    Raises:
        CheckpointError: There is none, or it does not verify.
    """
    why = why_not_named(run_dir, which, key)
    if why is not None:
        raise CheckpointError(why)
    newest = newest_verified(run_dir)
    if newest is None:
        raise CheckpointError(
            f"`run_dir` must hold a checkpoint that verifies, but {run_dir} holds none instead. Train first."
        )
    if which == "last":
        return newest[0]
    step = read_state(newest[0] / STATE).best_step if which == "best" else int(which)
    folder = step_dir(run_dir, step if step is not None else -1)
    if not folder.is_dir():
        raise CheckpointError(_not_saved(_saved(run_dir), key, which))
    damage = inspect(folder)[1]
    if damage:
        raise CheckpointError(f"Checkpoint {folder.name} does not verify: {damage}. Choose another.")
    return folder


def _saved(run_dir: Path) -> list[int]:
    return sorted(step for entry in find_checkpoints(run_dir) if (step := step_of(entry)) is not None)


def _not_saved(steps: list[int], key: str, which: str) -> str:
    """Return what is said of a step that is not there, or not any more."""
    near = min(steps, key=lambda step: abs(step - int(which))) if which.isdigit() else steps[-1]
    gone = "" if which.isdigit() else ", of which nothing is saved"
    words = "last, best" if which.isdigit() else "last"
    return (
        f"`{key}` must be {words} or a step that is saved ({', '.join(map(str, steps))}), but is {which} "
        f"instead{gone}. Set {key}={near}, or last."
    )
