"""How much of their prompt the answers of a unit share: packs hold that once. Pure numpy.

Source: "Accelerating Direct Preference Optimization with Prefix Sharing", arXiv:2410.20305.
"""

from __future__ import annotations

import numpy as np

from trainer.data.types import EncodedBatch, Int32s, Int64s


def shared_prefixes(batch: EncodedBatch) -> Int32s:
    """Return how many tokens each piece may take from the first piece of its unit in place of its own, int32 [pieces].

    They are equal in both, and supervised in neither. The last such token stays in each piece, so that every position
    still has one label: there it is the first token that differs or is learnt. 0 of first pieces.
    """
    if not len(batch.lengths):
        return np.empty(0, dtype=np.int32)
    starts = np.cumsum(batch.lengths, dtype=np.int64) - batch.lengths
    first_P = first_pieces(batch.unit_pieces)
    piece_T = np.repeat(np.arange(len(batch.lengths)), batch.lengths)
    place_T = np.arange(len(batch.tokens)) - starts[piece_T]
    # Behind the end of the first piece any token will do: it is not taken for an equal one.
    in_first_T = place_T < batch.lengths[first_P][piece_T]
    other_T = starts[first_P][piece_T] + np.where(in_first_T, place_T, 0)
    is_alike_T = in_first_T & (batch.tokens == batch.tokens[other_T])
    is_alike_T &= (batch.supervised == 0) & (batch.supervised[other_T] == 0)
    ends_T = np.where(is_alike_T, batch.lengths[piece_T], place_T)
    alike_P = np.minimum.reduceat(ends_T, starts)
    is_first_P = first_P == np.arange(len(first_P))
    return np.where(is_first_P, 0, np.maximum(alike_P - 1, 0)).astype(np.int32)


def first_pieces(unit_pieces: Int32s) -> Int64s:
    """Return the number of the first piece of each piece's unit, int64 [pieces]."""
    return np.repeat(np.cumsum(unit_pieces, dtype=np.int64) - unit_pieces, unit_pieces)
