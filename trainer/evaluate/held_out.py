"""Held-out loss by source. Every rank runs the same number of batches, so nobody waits for ever.

Shapes: N tokens of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from trainer.data.collate import MicroBatch
from trainer.data.loader import read_micro_batch
from trainer.data.order import PackRef
from trainer.data.store import SplitStore
from trainer.dist.group import Group
from trainer.engine.build import Engine
from trainer.step import add_by_source, labels_of, model_inputs


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The held-out packs of all sources, laid out for the ranks."""

    names: Sequence[str]
    stores: Sequence[SplitStore]
    max_packs: int
    micro_batch_size: int
    pad_id: int

    def batches(self, rank: int, world_size: int) -> list[list[PackRef]]:
        """Return this rank's batches; ranks with less to do repeat a pack that is not counted."""
        refs = [
            PackRef(source, pack, 0)
            for source, store in enumerate(self.stores)
            for pack in range(min(store.num_packs, self.max_packs))
        ]
        if not refs:
            return []
        unit = self.micro_batch_size * world_size
        num_rounds = -(-len(refs) // unit)
        mine = [refs[i] if i < len(refs) else _FILLER for i in range(rank, num_rounds * unit, world_size)]
        size = self.micro_batch_size
        return [mine[i : i + size] for i in range(0, len(mine), size)]


_FILLER = PackRef(-1, 0, 0)


def held_out_losses(
    engine: Engine,
    held_out: HeldOut,
    group: Group,
    flash: bool,
    on_batch: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Return the mean held-out loss of every source in nats. Collective: every rank.

    Sources without held-out packs are left out.
    """
    num_sources = len(held_out.names)
    sums_S = torch.zeros(num_sources, dtype=torch.float64, device=group.device)
    counts = [0.0] * num_sources
    with engine.evaluating():
        for refs in held_out.batches(group.rank, group.world_size):
            micro = _read(held_out, refs)
            _, nll_N = engine.forward(
                labels=labels_of(micro, group.device), **model_inputs(micro, group.device, flash)
            )
            add_by_source(sums_S, nll_N, micro)
            for source, count in zip(micro.source_B, micro.num_targets_B, strict=True):
                counts[source] += count
            on_batch()
    totals = group.sum([*sums_S.tolist(), *counts])
    losses, targets = totals[:num_sources], totals[num_sources:]
    return {
        name: loss / count for name, loss, count in zip(held_out.names, losses, targets, strict=True) if count
    }


def _read(held_out: HeldOut, refs: Sequence[PackRef]) -> MicroBatch:
    """Read a batch; fillers become the first pack there is with every label ignored."""
    first = next(i for i, store in enumerate(held_out.stores) if store.num_packs)
    real = [PackRef(first, 0, 0) if ref is _FILLER else ref for ref in refs]
    micro = read_micro_batch(held_out.stores, real, held_out.pad_id)
    for row, ref in enumerate(refs):
        if ref is _FILLER:
            micro.labels_BT[row] = -100
            micro.num_targets_B[row] = 0
    return micro
