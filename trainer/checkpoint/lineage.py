"""What a start finds in a used directory: which checkpoint it goes on from, and what is set aside. Nothing is removed.

A run never begins at step 0 by itself where checkpoints are, and what it leaves behind keeps a name of its own:
`checkpoints/damaged-step-...` for one that cannot be used, `abandoned-N` for a run that was given up on purpose.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from trainer.checkpoint.layout import (
    DAMAGED,
    checkpoints_dir,
    find_checkpoints,
    find_damaged,
    next_abandoned,
)
from trainer.checkpoint.manifest import Manifest
from trainer.checkpoint.verify import inspect
from trainer.config.fence import check_publish
from trainer.dist.mesh import Mesh
from trainer.errors import CheckpointError

OF_TRACKERS = ("trackers", "tensorboard")
"""How trackers know the run, and what one of them was told: another run is another one there."""
OF_A_RUN = (
    *("checkpoints", "metrics.jsonl", "samples.jsonl", "rounds", "ledger.jsonl", *OF_TRACKERS),
    *("forgetting.json", "evaluation.json", "interpolation.json", "report.html"),
)
"""What is of one line of checkpoints: a step of the next one has the same name, and is another model."""


def choose(
    run_dir: Path,
    mesh: Mesh,
    load: Callable[[Path, Manifest], str | None],
    say: Callable[[str], None],
) -> tuple[Path, Manifest] | None:
    """Load the newest checkpoint that can be used and return it; None in a directory without any. Collective.

    Args:
        load: Takes a checkpoint that verified over, or says why it cannot be used. Collective.
        say: Told of each that cannot be used, on rank 0.
    Raises:
        CheckpointError: There are checkpoints, and none can be used. Nothing was changed.
    """
    candidates, earlier = mesh.from_first(lambda: (find_checkpoints(run_dir), find_damaged(run_dir)))
    reasons: dict[Path, str] = {}
    for folder in candidates:
        manifest, reason = inspect(folder, mesh)
        if reason is None and manifest is not None:
            reason = load(folder, manifest)
        if reason is None and manifest is not None:
            mesh.from_first(lambda: [set_aside(one) for one in reasons])
            return folder, manifest
        reasons[folder] = str(reason).rstrip(".")
        if mesh.is_first:
            say(f"Checkpoint {folder.name} cannot be used: {reasons[folder]}.")
    reasons |= {folder: "it was set aside before" for folder in earlier}
    if not reasons:
        return None
    listed = "; ".join(f"{folder.name}: {reason}" for folder, reason in reasons.items())
    raise CheckpointError(
        f"`run_dir` must hold a checkpoint to go on from, but none of {len(reasons)} in {checkpoints_dir(run_dir)} can "
        f"be used ({listed}). Nothing was changed: mend the disk or restore one and start again, or begin at step 0 on "
        f"purpose with checkpoint.resume=false, which keeps them in {next_abandoned(run_dir)}."
    )


def set_aside(folder: Path) -> Path:
    """Rename a checkpoint that cannot be used, so that nothing counts or removes it; return its new place."""
    check_publish(folder)
    number = 1
    while True:
        suffix = "" if number == 1 else f".{number}"
        target = folder.with_name(f"{DAMAGED}{folder.name}{suffix}")
        if not os.path.lexists(target):
            os.rename(folder, target)
            return target
        number += 1


def abandon(run_dir: Path, had_some: bool = False) -> Path | None:
    """Move the checkpoints of the run that is there and what is known of them aside; None where it left none.

    Args:
        had_some: It saved, though nothing is there any more.
    """
    if not had_some and not find_checkpoints(run_dir) and not find_damaged(run_dir):
        return None
    target = next_abandoned(run_dir)
    leave_behind(run_dir, OF_A_RUN, target)
    return target


def leave_behind(run_dir: Path, names: Sequence[str], target: Path) -> None:
    """Move what is there of these names into a folder, which is made if anything is."""
    check_publish(target)
    for name in names:
        if (run_dir / name).exists():
            target.mkdir(exist_ok=True)
            os.rename(run_dir / name, target / name)
