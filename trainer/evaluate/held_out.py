"""Held-out loss by source. Every rank runs the same number of batches, so nobody waits for ever.

Shapes: N tokens of a micro-batch, P pieces.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trainer.data.pack.collate import IGNORE, MicroBatch
from trainer.data.pack.refs import FILLER, PackRef, read_batch, spread
from trainer.data.store.store import SplitStore
from trainer.dist.mesh import Axis
from trainer.engine.policy import Policy
from trainer.metrics.long_work import LongWork

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The held-out packs of all sources, laid out for the ranks."""

    names: Sequence[str]
    stores: Sequence[SplitStore]
    max_packs: int
    micro_batch_size: int
    pad_id: int
    heed: Callable[[], None] = lambda: None
    """Called by every rank before each batch; may raise on all of them, to give up."""

    def batches(self, data: Axis) -> list[list[PackRef]]:
        """Return the batches of a place on the data axis; those with less to do repeat a pack that is not counted."""
        refs = [
            PackRef(source, pack, 0)
            for source, store in enumerate(self.stores)
            for pack in range(min(store.num_packs, self.max_packs))
        ]
        return spread(refs, data, self.micro_batch_size)

    def walk(self, data: Axis, what: str) -> Iterator[list[PackRef]]:
        """Yield those batches; before each all ranks may give up, and where it takes long a line says how far it is."""
        batches = self.batches(data)
        pace = LongWork(len(batches), _LOG.info)
        for index, refs in enumerate(batches):
            self.heed()
            pace.at(index, f"{what}, batch {index + 1} of {len(batches)}")
            yield refs


@dataclass(frozen=True, slots=True)
class PieceLosses:
    """Summed loss in nats and supervised targets of every held-out piece of a source, in the order of its packs.

    A piece is a document, or the part of one that a pack holds. P pieces.
    """

    nll_P: npt.NDArray[np.float64]
    targets_P: npt.NDArray[np.int64]

    @property
    def mean(self) -> float:
        """Return the mean loss of a supervised token in nats."""
        return float(self.nll_P.sum() / self.targets_P.sum())


def held_out_pieces(
    policy: Policy,
    held_out: HeldOut,
    on_batch: Callable[[], None] = lambda: None,
) -> dict[str, PieceLosses]:
    """Return the held-out losses of every source, piece by piece. Collective: every rank, which all get the same.

    Sources without held-out packs are left out.
    """
    found: list[tuple[int, int, list[float], list[int]]] = []
    with policy.evaluating():
        for refs in held_out.walk(policy.mesh.data, "Held-out loss"):
            micro = read_batch(held_out.stores, refs, held_out.pad_id)
            found += _by_piece(policy.nll(micro).nll_N.double().cpu().numpy(), micro, refs)
            on_batch()
    everything = sorted(item for part in policy.mesh.gather_data(found) for item in part)
    losses = {}
    for number, name in enumerate(held_out.names):
        nll = [value for source, _, values, _ in everything if source == number for value in values]
        targets = [count for source, _, _, counts in everything if source == number for count in counts]
        if targets:
            losses[name] = PieceLosses(np.array(nll), np.array(targets, dtype=np.int64))
    return losses


def _by_piece(
    nll_N: npt.NDArray[np.float64], micro: MicroBatch, refs: Sequence[PackRef]
) -> list[tuple[int, int, list[float], list[int]]]:
    """Return (source, pack, loss sums, targets) of each row, over its pieces with targets."""
    starts = micro.cu_seq_lens[:-1]
    sums = np.add.reduceat(nll_N, starts)
    targets = np.add.reduceat((micro.labels_BT.reshape(-1) != IGNORE).astype(np.int64), starts)
    rows = starts // micro.labels_BT.shape[1]
    found = []
    for row, ref in enumerate(refs):
        counted = (rows == row) & (targets > 0)
        if ref is not FILLER and counted.any():
            found.append((ref.source, ref.pack, sums[counted].tolist(), targets[counted].tolist()))
    return found
