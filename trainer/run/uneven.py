"""A number of ranks that does not divide the packs of a step: what is said of it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from trainer.engine.batch import BatchShape
from trainer.errors import TopologyError

if TYPE_CHECKING:
    from trainer.engine.policy import Policy

_LOG = logging.getLogger(__name__)


def check_uneven(shape: BatchShape, policy: Policy) -> None:
    """Say what a step has too many places for, and refuse it where that would change what routers learn.

    Raises:
        TopologyError: Routers train.
    """
    num_empty = shape.num_places - shape.packs_per_step
    if not num_empty:
        return
    if policy.balance is not None or policy.choice_bias is not None:
        raise TopologyError(
            f"The ranks must divide the {shape.packs_per_step} packs of a step where routers train, but are "
            f"{shape.world_size} with micro-batches of {shape.micro_batch_size} instead. Start a number of ranks that "
            "divides them."
        )
    _LOG.warning(
        "%d ranks share the %d packs of a step unevenly: %d of %d places hold a pack that counts for nothing.",
        shape.world_size,
        shape.packs_per_step,
        num_empty,
        shape.num_places,
    )
