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
    newest = find_checkpoints(run_dir)[0]
    folder = step_dir(run_dir, int(which)) if which.isdigit() else newest
    if damage := inspect(folder)[1]:
        raise CheckpointError(_damaged(run_dir, folder, damage, key))
    if which != "best":
        return folder
    step = read_state(newest / STATE).best_step
    folder = step_dir(run_dir, step if step is not None else -1)
    if not folder.is_dir():
        raise CheckpointError(_not_saved(_saved(run_dir), key, which))
    if damage := inspect(folder)[1]:
        raise CheckpointError(_damaged(run_dir, folder, damage, key))
    return folder


def _damaged(run_dir: Path, folder: Path, damage: str, key: str) -> str:
    """Return what is said of a checkpoint that does not verify: no other is taken in its place by itself."""
    sound = newest_verified(run_dir, on_damage=lambda text: None)
    if sound is None:
        return (
            f"`run_dir` must hold a checkpoint that verifies, but {run_dir} holds none instead. Train first."
        )
    return (
        f"`{key}` must be a checkpoint that verifies, but {folder.name} does not: {damage.rstrip('.')}. Take another "
        f"on purpose: {key}={sound[1].step}."
    )


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
