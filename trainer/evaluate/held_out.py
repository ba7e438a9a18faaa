"""Held-out loss by source. Every rank runs the same number of batches, so nobody waits for ever.

Shapes: N tokens of a micro-batch, P pieces.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from trainer.config.data import TokenValue
from trainer.data.pack.collate import IGNORE, MicroBatch
from trainer.data.pack.refs import FILLER, PackRef, read_batch, spread
from trainer.data.store.store import SplitStore
from trainer.data.types import Unit
from trainer.dist.mesh import Axis
from trainer.engine.policy import Policy
from trainer.metrics.long_work import LongWork

_LOG = logging.getLogger(__name__)
LABEL = TokenValue.label.value


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

    def every_second(self, first: int) -> PieceLosses:
        """Return the pieces of one side, where pieces come in pairs."""
        return PieceLosses(self.nll_P[first::2], self.targets_P[first::2])


TokenLosses = dict[tuple[str, int], npt.NDArray[np.float16]]
"""By set and pack: the loss in nats at each position of the pack, 0 where nothing is supervised, [T] float16."""


@dataclass(frozen=True, slots=True)
class LabelledLosses(PieceLosses):
    """Those of answers with labels."""

    is_desirable_P: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class HeldOutLosses:
    """Held-out losses of every source that has held-out packs."""

    pieces: dict[str, PieceLosses]
    """Of a source of pairs those of the chosen answers, of labelled answers those of the desirable ones: a loss that
    falls on others is no gain."""
    rejected: dict[str, PieceLosses]
    """Of sources of pairs the rejected answers, in the order of the chosen ones."""
    labelled: dict[str, LabelledLosses] = field(default_factory=dict)
    """Of sources of labelled answers all of them, in order."""
    tokens: TokenLosses = field(default_factory=dict)
    """Loss by position; empty unless asked for."""


def held_out_losses(
    policy: Policy,
    held_out: HeldOut,
    on_batch: Callable[[], None] = lambda: None,
    keeps_tokens: bool = False,
) -> HeldOutLosses:
    """Return the held-out losses of every source. Collective: every rank, which all get the same.

    Args:
        keeps_tokens: Return the loss at every position too: 2 bytes for each position of the packs.
    """
    found: list[_PackLosses] = []
    tokens: TokenLosses = {}
    with policy.evaluating():
        for refs in held_out.walk(policy.mesh.data, "Held-out loss"):
            micro = read_batch(held_out.stores, refs, held_out.pad_id)
            nll_N = policy.nll(micro).nll_N.double().cpu().numpy()
            found += _by_piece(nll_N, micro, refs, held_out.stores)
            if keeps_tokens:
                rows_BT = nll_N.reshape(micro.labels_BT.shape).astype(np.float16)
                tokens |= {
                    (held_out.names[ref.source], ref.pack): row_T
                    for ref, row_T in zip(refs, rows_BT, strict=True)
                    if ref is not FILLER
                }
            on_batch()
    everything = sorted(item for part in policy.mesh.gather_data(found) for item in part)
    pieces, rejected, labelled = {}, {}, {}
    for number, (name, store) in enumerate(zip(held_out.names, held_out.stores, strict=True)):
        own = [item[2:] for item in everything if item[0] == number]
        nll_P, targets_P, labels_P = (np.array([one for part in own for one in part[at]]) for at in range(3))
        if not len(nll_P):
            continue
        losses = PieceLosses(nll_P, targets_P.astype(np.int64))
        if store.unit is Unit.answer:
            is_desirable_P = labels_P > 0
            labelled[name] = LabelledLosses(losses.nll_P, losses.targets_P, is_desirable_P)
            if not is_desirable_P.any():
                continue
            losses = PieceLosses(losses.nll_P[is_desirable_P], losses.targets_P[is_desirable_P])
        if store.unit is Unit.pair:
            rejected[name] = losses.every_second(1)
            losses = losses.every_second(0)
        pieces[name] = losses
    if keeps_tokens:
        tokens = {key: row_T for part in policy.mesh.gather_data(tokens) for key, row_T in part.items()}
    return HeldOutLosses(pieces, rejected, labelled, tokens)


def held_out_pieces(
    policy: Policy, held_out: HeldOut, on_batch: Callable[[], None] = lambda: None
) -> dict[str, PieceLosses]:
    """Return the held-out losses of every source, piece by piece; of pairs those of the chosen answers.

    Collective: every rank, which all get the same. Sources without held-out packs are left out.
    """
    return held_out_losses(policy, held_out, on_batch).pieces


_PackLosses = tuple[int, int, list[float], list[int], list[float]]
"""Source, pack, and the loss sums, targets and labels of its pieces; 0 for labels where they have none."""


def _by_piece(
    nll_N: npt.NDArray[np.float64],
    micro: MicroBatch,
    refs: Sequence[PackRef],
    stores: Sequence[SplitStore],
) -> list[_PackLosses]:
    """Return (source, pack, loss sums, targets, labels) of each row, over its pieces with targets."""
    starts = micro.cu_seq_lens[:-1]
    sums = np.add.reduceat(nll_N, starts)
    targets = np.add.reduceat((micro.labels_BT.reshape(-1) != IGNORE).astype(np.int64), starts)
    rows = starts // micro.labels_BT.shape[1]
    found = []
    for row, ref in enumerate(refs):
        counted = (rows == row) & (targets > 0)
        if ref is FILLER or not counted.any():
            continue
        labels = np.zeros(len(starts))
        if stores[ref.source].unit is Unit.answer:
            labels = np.add.reduceat(micro.values_BT[LABEL].reshape(-1), starts)
        kept = (sums[counted].tolist(), targets[counted].tolist(), labels[counted].tolist())
        found.append((ref.source, ref.pack, *kept))
    return found
