"""Held-out loss by source. Every rank runs the same number of batches, so nobody waits for ever.

Shapes: N tokens of a micro-batch, P pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from trainer.data.pack.collate import IGNORE, MicroBatch
from trainer.data.pack.refs import FILLER, PackRef, read_batch, spread
from trainer.data.store.store import SplitStore
from trainer.dist.group import Group
from trainer.engine.inputs import labels_of, model_inputs


class Evaluable(Protocol):
    """What evaluation asks of a model: an engine, or a plain one in this process."""

    def forward(self, **inputs: Any) -> Any:
        """Run the model: (loss sum, loss of each token) with labels, else logits."""

    def evaluating(self) -> AbstractContextManager[None]:
        """Run without gradients and dropout."""


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
        return spread(refs, rank, world_size, self.micro_batch_size)


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
    engine: Evaluable,
    held_out: HeldOut,
    group: Group,
    flash: bool,
    on_batch: Callable[[], None] = lambda: None,
) -> dict[str, PieceLosses]:
    """Return the held-out losses of every source, piece by piece. Collective: every rank, which all get the same.

    Sources without held-out packs are left out.
    """
    found: list[tuple[int, int, list[float], list[int]]] = []
    with engine.evaluating():
        for refs in held_out.batches(group.rank, group.world_size):
            micro = read_batch(held_out.stores, refs, held_out.pad_id)
            _, nll_N = engine.forward(
                labels=labels_of(micro, group.device), **model_inputs(micro, group.device, flash)
            )
            found += _by_piece(nll_N.double().cpu().numpy(), micro, refs)
            on_batch()
    everything = sorted(item for part in group.gather(found) for item in part)
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
