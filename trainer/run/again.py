"""A step that is done again and must come out the same: hardware that computes wrongly without a sign does not.

Source: Dixit et al. 2021, Silent Data Corruptions at Scale (arXiv:2102.11245).
"""

from __future__ import annotations

import struct

from torch import Tensor

from trainer.data.pack.collate import MicroBatch
from trainer.engine.policy import Policy
from trainer.errors import SelfCheckError
from trainer.evaluate.proofs.gradient import slopes_of


def check_again(policy: Policy, micro: MicroBatch, step: int) -> None:
    """Take a micro-batch forward and backward twice and compare loss and gradients bit for bit. Collective: every rank.

    Nothing is kept of it: no gradient, and no number that was drawn.

    Raises:
        SelfCheckError: They differ; names the ranks.
    """
    first, second = (_digest(policy, micro) for _ in range(2))
    differing = [name for name, bits in first.items() if second.get(name) != bits]
    found: list[list[str]] = policy.mesh.gather(differing)
    wrong = {rank: names for rank, names in enumerate(found) if names}
    if wrong:
        ranks = ", ".join(f"rank {rank} ({', '.join(names[:3])})" for rank, names in wrong.items())
        raise SelfCheckError(
            f"A step must come out the same when it is done again, but step {step} differs on {ranks} instead: the "
            "GPU, its memory or the processor computes wrongly. Leave that node out (cluster.exclude), and go on from "
            "the last checkpoint."
        )


def _digest(policy: Policy, micro: MicroBatch) -> dict[str, bytes]:
    """Return the bits of the loss, and of the norm of each gradient, by name."""
    slopes = slopes_of(policy, micro)
    norms = {name: _square(gradient) for name, gradient in (slopes.places | slopes.parameters).items()}
    return {name: struct.pack("<d", value) for name, value in {"the loss": slopes.loss, **norms}.items()}


def _square(gradient: Tensor) -> float:
    return float(gradient.double().square().sum())
