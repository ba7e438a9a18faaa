"""Lays the requests of benchmark tasks out for the ranks: sorted by length, batched, the same number for each.

Collective forwards (ZeRO-3) need every rank in every round, so ranks with less to do repeat a batch that is not
counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from trainer.dist.mesh import Axis
from trainer.engine.policy import Policy


@dataclass(frozen=True, slots=True)
class TaskModel:
    """The loaded model as benchmark tasks use it."""

    policy: Policy
    hf_config: object
    pad_id: int
    end_ids: frozenset[int]
    """Tokens that end a generated answer."""
    max_length: int
    """Longest input in tokens."""
    batch_tokens: int
    """Tokens of a batch of one rank, padding included."""
    heed: Callable[[], None] = lambda: None
    """Called after every batch, by all ranks together; what it raises on all of them ends the work."""


def make_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Return indices by batch, longest first: a batch padded to its longest holds at most so many tokens.

    One that is longer than that alone is a batch of its own.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    batches: list[list[int]] = []
    while order:
        size = max(batch_tokens // max(lengths[order[0]], 1), 1)
        batches.append(order[:size])
        order = order[size:]
    return batches


def share(batches: Sequence[list[int]], data: Axis) -> Iterator[tuple[list[int], bool]]:
    """Yield (batch, whether it counts) of a rank: as many for every rank, neighbours in length at the same time."""
    for start in range(0, len(batches), data.size):
        mine = start + data.rank
        yield (batches[mine], True) if mine < len(batches) else (batches[-1], False)
