"""Giving up what is being measured where a rank is asked to stop: it can be measured again."""

from __future__ import annotations

from collections.abc import Callable

from trainer.dist.mesh import Mesh
from trainer.runtime.signals import StopFlag


class GivenUp(Exception):
    """A rank was asked to stop in the middle of a measurement; all ranks raise it at the same batch."""


def heeding(mesh: Mesh, stop_flag: StopFlag) -> Callable[[], None]:
    """Return what is called between batches, by every rank, and raises GivenUp on all where one is asked to stop."""

    def heed() -> None:
        if mesh.sum([float(stop_flag.requested)])[0]:
            raise GivenUp

    return heed
