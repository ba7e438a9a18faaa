"""Giving up what is being loaded or measured where a rank is asked to stop: it can be done again."""

from __future__ import annotations

from collections.abc import Callable

from trainer.dist.mesh import Mesh
from trainer.dist.progress import PROGRESS
from trainer.runtime.signals import StopFlag


class GivenUp(Exception):
    """A rank was asked to stop in the middle of a measurement, or before it; all ranks raise it at the same place."""


def heeding(mesh: Mesh, stop_flag: StopFlag | None) -> Callable[[], None]:
    """Return what every rank calls between batches or tensors, and raises GivenUp on all where one is asked to stop.

    Without a flag it only tells the watch that ranks get on.
    """
    # A mesh of one may be that of one rank of several, which does something for all.
    passed = PROGRESS.mark if mesh.num_ranks > 1 else PROGRESS.alive

    def heed() -> None:
        passed()
        if stop_flag is not None and mesh.sum([float(stop_flag.requested)])[0]:
            raise GivenUp

    return heed
