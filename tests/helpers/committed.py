"""A checkpoint written and published in one go, as a test wants it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from trainer.checkpoint.commit import Commit, WrittenFile, attempt
from trainer.checkpoint.manifest import Manifest
from trainer.dist.mesh import Mesh


def commit(run_dir: Path, manifest: Manifest, write: Callable[[Path], list[WrittenFile]], mesh: Mesh) -> Path:
    """Write a checkpoint whole or not at all. Collective: every rank.

    Args:
        manifest: Without files; they are gathered from what the ranks report.
        write: Writes this rank's files under the folder it is given and returns them; without a collective.
    Raises:
        CheckpointError: No space, or any rank failed; the staging folder is gone then.
    """
    begun = Commit(run_dir, manifest, mesh)
    return begun.finish(*attempt(lambda: write(begun.staging)))
