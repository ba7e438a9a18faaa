"""Scores of held-out pairs. Every rank runs the same number of batches, so nobody waits for ever.

Shapes: P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from trainer.data.pack.collate import IGNORE, MicroBatch
from trainer.data.pack.margins import margins
from trainer.data.pack.pairs import first_of_pairs
from trainer.data.pack.refs import FILLER, read_batch
from trainer.data.types import Float64s, Int64s
from trainer.engine.model_inputs import move
from trainer.engine.policy import Policy
from trainer.evaluate.held_out import HeldOut
from trainer.model.head.rewards import Rewards


@dataclass(frozen=True, slots=True)
class PairScores:
    """What a reward model says of the held-out pairs of a source, in the order of its packs."""

    chosen_P: Float64s
    rejected_P: Float64s
    margin_P: Float64s
    """By how much rows ask the chosen answer to be ahead."""
    chosen_tokens_P: Int64s
    """Supervised tokens of the answers."""
    rejected_tokens_P: Int64s


def held_out_scores(policy: Policy, held_out: HeldOut) -> dict[str, PairScores]:
    """Return the scores of the held-out pairs of every source with some. Collective: every rank, all get the same."""
    found: list[tuple[int, int, list[list[float]]]] = []
    with policy.evaluating():
        for refs in held_out.walk(policy.mesh.data, "Held-out scores"):
            micro = read_batch(held_out.stores, refs, held_out.pad_id)
            table_5P, row_P = _table(policy, micro)
            found += [
                (ref.source, ref.pack, table_5P[:, row_P == row].T.tolist())
                for row, ref in enumerate(refs)
                if ref is not FILLER
            ]
    everything = sorted(item for part in policy.mesh.gather_data(found) for item in part)
    scores = {}
    for number, name in enumerate(held_out.names):
        rows = [pair for source, _, pairs in everything if source == number for pair in pairs]
        if rows:
            chosen, rejected, margin, *tokens = np.array(rows, dtype=np.float64).T
            scores[name] = PairScores(chosen, rejected, margin, *(one.astype(np.int64) for one in tokens))
    return scores


def _table(policy: Policy, micro: MicroBatch) -> tuple[Float64s, Int64s]:
    """Return scores, margins and tokens of the pairs of a micro-batch [5, P], and the row that each is in [P]."""
    first_P = first_of_pairs(micro.units_S)
    both_K = np.concatenate([first_P, first_P + 1])
    rows_K = move(torch.from_numpy(micro.last_S[both_K]), policy.device)
    scores_2P = policy.answer(Rewards(rows_K), micro).double().cpu().numpy().reshape(2, -1)
    learnt = micro.segments_BT.reshape(-1)[micro.labels_BT.reshape(-1) != IGNORE]
    tokens_2P = np.bincount(learnt, minlength=len(micro.units_S))[both_K].reshape(2, -1)
    table_5P = np.concatenate([scores_2P, margins(micro)[first_P][None], tokens_2P])
    return table_5P, micro.cu_seq_lens[:-1][first_P] // micro.tokens_BT.shape[1]
