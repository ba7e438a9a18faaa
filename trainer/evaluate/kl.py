"""Forward KL divergence from the base model: its most likely next tokens are kept before training begins.

KL(base || tuned) over the base's top 64 tokens and the rest as one, by the formula of trainer/model/head/divergence.py.

Shapes: N tokens of a micro-batch, Q supervised positions, K = 64, V vocabulary.
Source: forgetting follows the KL on the new task's prompts (Shenfeld et al. 2025, arXiv:2509.04259).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainer.data.pack.collate import IGNORE, MicroBatch
from trainer.data.pack.refs import PackRef, read_batch
from trainer.engine.policy import Policy
from trainer.evaluate.held_out import HeldOut
from trainer.model.head.divergence import divergence

TOP = 64
POSITIONS_AT_ONCE = 512
"""Rows of float32 logits at once: 512 x 128k x 4 bytes is 0.26 GB."""


@dataclass(frozen=True, slots=True)
class Reference:
    """What the base model says of one pack."""

    ids_QK: npt.NDArray[np.int32]
    log_probs_QK: npt.NDArray[np.float32]
    piece_Q: npt.NDArray[np.int32]
    """Piece of the pack that a position belongs to."""


References = dict[tuple[str, int], Reference]
"""By set and pack."""


def take_references(policy: Policy, held_out: HeldOut) -> References:
    """Keep the model's most likely next tokens at every supervised position. Collective: every rank gets all."""
    mine: References = {}
    with policy.evaluating():
        for refs, micro in _batches(policy, held_out):
            by_pack = (torch.split(answer.cpu(), micro.num_targets_B) for answer in policy.top(micro, TOP))
            for (key, piece_Q), ids_QK, log_probs_QK in zip(
                _packs(micro, refs, held_out), *by_pack, strict=True
            ):
                if len(piece_Q):  # nothing is supervised in a filler
                    mine[key] = Reference(ids_QK.numpy(), log_probs_QK.numpy(), piece_Q)
    return {key: value for part in policy.mesh.gather_data(mine) for key, value in part.items()}


def divergence_by_document(
    policy: Policy, held_out: HeldOut, references: References
) -> dict[str, tuple[list[float], list[int]]]:
    """Return the summed KL in nats and the positions of every document, by set. Collective: every rank gets all."""
    return {
        name: ([kl for kl, _ in of.values()], [count for _, count in of.values()])
        for name, of in divergences(policy, held_out, references).items()
    }


def divergences(
    policy: Policy, held_out: HeldOut, references: References
) -> dict[str, dict[int, tuple[float, int]]]:
    """Return the same by set and number of the document, in the order of packs. Collective: every rank gets all."""
    mine: list[tuple[str, int, list[int], list[float], list[int]]] = []
    for key, piece_Q, logits in _positions(policy, held_out):
        reference = references.get(key)
        if reference is None:  # the base was evaluated on fewer packs
            continue
        kl_Q = np.concatenate(
            [
                _divergence(rows, reference, slice(first, first + len(rows)))
                for first, rows in zip(
                    range(0, len(piece_Q), POSITIONS_AT_ONCE),
                    torch.split(logits, POSITIONS_AT_ONCE),
                    strict=True,
                )
            ]
        )
        pieces = np.unique(piece_Q)
        sums = [float(kl_Q[piece_Q == piece].sum()) for piece in pieces]
        counts = [int((piece_Q == piece).sum()) for piece in pieces]
        mine.append((*key, pieces.tolist(), sums, counts))
    stores = dict(zip(held_out.names, held_out.stores, strict=True))
    found: dict[str, dict[int, list[float]]] = {}
    for name, pack, pieces, sums, counts in sorted(
        item for part in policy.mesh.gather_data(mine) for item in part
    ):
        documents, so_far = stores[name].documents_of(pack), found.setdefault(name, {})
        for piece, kl, count in zip(pieces, sums, counts, strict=True):
            of = so_far.setdefault(int(documents[piece]), [0.0, 0])
            of[0], of[1] = of[0] + kl, of[1] + count
    return {
        name: {document: (kl, int(count)) for document, (kl, count) in of.items()}
        for name, of in found.items()
    }


def _divergence(logits_QV: Tensor, reference: Reference, part: slice) -> npt.NDArray[np.float64]:
    """Return KL(base || model) at each position."""
    ids_QK = torch.from_numpy(reference.ids_QK[part]).long().to(logits_QV.device)
    base_QK = torch.from_numpy(reference.log_probs_QK[part]).double()
    model_QK = torch.log_softmax(logits_QV.float(), dim=-1).gather(1, ids_QK).double().cpu()
    return divergence(base_QK, model_QK).numpy()


def _positions(
    policy: Policy, held_out: HeldOut
) -> Iterator[tuple[tuple[str, int], npt.NDArray[np.int32], Tensor]]:
    """Yield ((set, pack), piece of each supervised position, its logits) of this rank's packs."""
    with policy.evaluating():
        for refs, micro in _batches(policy, held_out):
            rows = torch.from_numpy(np.flatnonzero(micro.labels_BT.reshape(-1) != IGNORE))
            logits = torch.split(policy.logits(micro, rows.to(policy.device)), micro.num_targets_B)
            for (key, piece_Q), logits_QV in zip(_packs(micro, refs, held_out), logits, strict=True):
                if len(piece_Q):
                    yield key, piece_Q, logits_QV


def _batches(policy: Policy, held_out: HeldOut) -> Iterator[tuple[list[PackRef], MicroBatch]]:
    for refs in held_out.walk(policy.mesh.data, "Divergence from the base"):
        yield refs, read_batch(held_out.stores, refs, held_out.pad_id)


def _packs(
    micro: MicroBatch, refs: list[PackRef], held_out: HeldOut
) -> list[tuple[tuple[str, int], npt.NDArray[np.int32]]]:
    """Return ((set, pack), piece of each supervised position) of each row; none are supervised in a filler."""
    return [
        (
            (held_out.names[ref.source], ref.pack),
            (segments_T - segments_T[0])[labels_T != IGNORE].astype(np.int32),
        )
        for ref, segments_T, labels_T in zip(refs, micro.segments_BT, micro.labels_BT, strict=True)
    ]
