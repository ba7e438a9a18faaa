"""Where the answers of a micro-batch lie, and the sums of their log-probabilities.

Shapes: N positions of the flattened batch, S of them asked about, G segments (a document, an answer with its prompt, or
padding), P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainer.data.pack.collate import IGNORE, MicroBatch
from trainer.data.pack.pairs import first_of_pairs
from trainer.data.types import Bools, Float64s, Int64s


@dataclass(frozen=True, slots=True)
class AskedTokens:
    """The tokens whose log-probabilities a loss reads, on the host, segment after segment."""

    rows_S: Int64s
    """Positions of the flattened batch, ascending."""
    targets_S: Int64s
    is_learnt_S: Bools
    """False for tokens of a prompt, which count for nothing but the cross-entropy over prompt and answer."""
    segments_S: Int64s

    def lengths_G(self, num_segments: int, learnt_only: bool = True) -> Int64s:
        """Count the tokens of each segment, int64 [G]."""
        chosen = self.segments_S[self.is_learnt_S] if learnt_only else self.segments_S
        return np.bincount(chosen, minlength=num_segments)


def asked_of(micro: MicroBatch, with_prompts: bool) -> AskedTokens:
    """Return the supervised tokens of a micro-batch, and with the prompts of chosen answers if they are wanted."""
    labels_N, segments_N = micro.labels_BT.reshape(-1), micro.segments_BT.reshape(-1)
    targets_N, is_asked_N = labels_N, labels_N != IGNORE
    if with_prompts:
        after_N = np.roll(micro.tokens_BT.reshape(-1), -1)
        is_inside_N = np.append(segments_N[:-1] == segments_N[1:], False)
        is_chosen_G = np.zeros(len(micro.units_S), dtype=np.bool_)
        is_chosen_G[first_of_pairs(micro.units_S)] = True
        is_prompt_N = is_chosen_G[segments_N] & is_inside_N & ~is_asked_N
        targets_N, is_asked_N = np.where(is_prompt_N, after_N, labels_N), is_asked_N | is_prompt_N
    rows_S = np.flatnonzero(is_asked_N)
    return AskedTokens(rows_S, targets_N[rows_S], labels_N[rows_S] != IGNORE, segments_N[rows_S])


def sums_of(log_probs_S: Tensor, lengths_G: Int64s) -> Tensor:
    """Sum log-probabilities by segment [G], float64, with a gradient, in one order: the same sums every time.

    A log-ratio is a small difference of two such sums, of which float32 would keep but a few digits.
    """
    lengths = torch.from_numpy(lengths_G).to(log_probs_S.device)
    found: Tensor = torch.segment_reduce(log_probs_S.double(), "sum", lengths=lengths, unsafe=True)
    return found


def place_by_segment(micro: MicroBatch, numbers: npt.ArrayLike) -> Float64s:
    """Put a number of each piece of all packs, padding apart, at its segment; 0 at padding. float64 [G]."""
    seq_len = micro.tokens_BT.shape[1]
    pieces: list[int] = []
    segment = 0
    for lengths in micro.lengths_B:
        pieces += range(segment, segment + len(lengths))
        segment += len(lengths) + (sum(lengths) < seq_len)
    assert segment == len(micro.units_S), "pieces and padding are all there is"
    placed = np.zeros(segment, dtype=np.float64)
    placed[pieces] = numbers
    return placed
