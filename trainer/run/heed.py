"""Giving up what is being loaded or measured where a rank is asked to stop, and what a signal is answered with."""

from __future__ import annotations

import logging
from collections.abc import Callable

from trainer.dist.mesh import Mesh
from trainer.dist.progress import PROGRESS
from trainer.metrics.long_work import LongWork
from trainer.metrics.outlook import LONG_S
from trainer.runtime.signals import StopFlag

_LOG = logging.getLogger(__name__)


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


SOON = "within seconds"


def before_training(when: str) -> str:
    """Return the answer to a signal that comes before the first step of a start."""
    return f"the run ends {when}; this start has trained nothing yet that would have to be saved."


def in_step(
    stop_flag: StopFlag, step: int, num_steps: int, num_micro: int, saves: bool
) -> Callable[[int], None]:
    """Return what is told before each micro-batch how far a step is: for the answer to a signal, and long steps."""
    progress = LongWork(num_micro, _LOG.info, every_s=LONG_S)

    def at(index: int) -> None:
        progress.at(index, f"Step {step} of {num_steps}, micro-batch {index + 1} of {num_micro}")
        where = f"now in its micro-batch {index + 1} of {num_micro}"
        stop_flag.when = f"after step {step} of {num_steps}, {where}, {_ends(saves)}"

    return at


def measuring(step: int, saves: bool) -> str:
    """Return the answer to a signal that comes while something is measured after a step."""
    return f"what is measured after step {step} is given up, {_ends(saves)}"


def saving(step: int) -> str:
    """Return the answer to a signal that comes while a checkpoint is written."""
    return f"once the checkpoint of step {step} is whole the run ends, at the latest after one step more."


COMPARING = "the comparison with the base is given up, and the run ends; the trained model is saved where it saves any."


def _ends(saves: bool) -> str:
    """Return how a run ends, and what of it stays."""
    kept = "a checkpoint is saved" if saves else "nothing is saved (checkpoint.enabled=false)"
    return f"{kept} and the run ends. A second Ctrl-C ends it at once, without a save."
