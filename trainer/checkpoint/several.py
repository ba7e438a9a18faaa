"""The last checkpoints of a run, for their mean."""

from __future__ import annotations

from pathlib import Path

from trainer.checkpoint.layout import find_checkpoints, step_of
from trainer.checkpoint.verify import inspect
from trainer.errors import CheckpointError

KEY = "export.average"


def find_last(checkpoint: Path, count: int) -> list[Path]:
    """Return so many verified checkpoints of one line, this one first, then those before it.

    Checkpoints of another line, which a run that was begun anew left beside them, are of another model: left out.

    Raises:
        CheckpointError: There are fewer, or one of them does not verify.
    """
    if count == 1:
        return [checkpoint]
    run_dir = checkpoint.parent.parent
    newest, own = step_of(checkpoint) or 0, inspect(checkpoint)[0]
    found: list[Path] = []
    for folder in find_checkpoints(run_dir):
        if (step_of(folder) or 0) > newest or len(found) == count:
            continue
        manifest, damage = inspect(folder)
        if damage is not None:
            raise CheckpointError(
                f"`{KEY}` must be of checkpoints that verify, but {folder.name} does not: {damage.rstrip('.')}. Set "
                f"{KEY}={max(len(found), 1)}, or bring it back from its source."
            )
        if manifest is not None and own is not None and manifest.lineage.run == own.lineage.run:
            found.append(folder)
    if len(found) < count:
        raise CheckpointError(
            f"`{KEY}` must be at most the checkpoints that are kept of a run up to {checkpoint.name}, {len(found)}, "
            f"but is {count} instead. Set {KEY}={len(found)}; checkpoint.keep_last={count} in a run keeps so many."
        )
    return found
