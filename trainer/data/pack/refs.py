"""Packs by name, and the micro-batches read of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from trainer.data.pack.collate import IGNORE, MicroBatch, collate
from trainer.data.store.store import SplitStore
from trainer.dist.mesh import Axis


class PackRef(NamedTuple):
    """One pack of the run: a source, a pack inside it, and which pass over its pool this is."""

    source: int
    pack: int
    epoch: int


FILLER = PackRef(-1, 0, 0)
"""Stands where a rank has no pack left; read as one that is not counted."""


def spread(refs: Sequence[PackRef], data: Axis, size: int) -> list[list[PackRef]]:
    """Return the batches of one place on the data axis; every place has as many, filled up by FILLER."""
    unit = size * data.size
    num_rounds = -(-len(refs) // unit)
    mine = [refs[i] if i < len(refs) else FILLER for i in range(data.rank, num_rounds * unit, data.size)]
    return [mine[i : i + size] for i in range(0, len(mine), size)]


def read_micro_batch(stores: Sequence[SplitStore], refs: Sequence[PackRef], pad_id: int) -> MicroBatch:
    """Read packs and collate them."""
    packs = [stores[ref.source].pack(ref.pack) for ref in refs]
    return collate(packs, [ref.source for ref in refs], stores[0].seq_len, pad_id)


def read_batch(
    stores: Sequence[SplitStore], refs: Sequence[PackRef], pad_id: int, filler: PackRef | None = None
) -> MicroBatch:
    """Read a batch; fillers, which come last, become a pack with every label ignored: the first there is by default."""
    if FILLER not in refs:
        return read_micro_batch(stores, refs, pad_id)
    if filler is None:
        first = next(i for i, store in enumerate(stores) if store.num_packs)
        filler = PackRef(first, 0, 0)
    real = [filler if ref is FILLER else ref for ref in refs]
    micro = read_micro_batch(stores, real, pad_id)
    rows_S = micro.cu_seq_lens[:-1] // micro.labels_BT.shape[1]
    for row, ref in enumerate(refs):
        if ref is FILLER:
            micro.labels_BT[row] = IGNORE
            micro.num_targets_B[row] = 0
            micro.units_S[rows_S == row] = -1
            for values_BT in micro.values_BT.values():
                values_BT[row] = 0
    return micro
