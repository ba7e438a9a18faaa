"""Decides which documents are held out. Pure: a document's own content decides, nothing else."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from trainer.data.types import Bools

HASH_BYTES = 8


def split_hash(content_digest: bytes) -> int:
    """Return the 64-bit number that places a document between 0 and 1."""
    return int.from_bytes(content_digest[:HASH_BYTES], "big")


def choose_validation(hashes: npt.NDArray[np.uint64], frac: float) -> Bools:
    """Mark the held-out documents of a source, so that neither side is empty if two exist.

    A document whose hash is below the share is held out; adding or reordering others does not change that.
    When the hash alone would leave a side empty, the document with the smallest hash (and its exact
    copies) is held out and the rest trains. One document, or copies of one, is all training. A share of 1
    holds out everything.

    Shapes:
        hashes: uint64 [D] from split_hash; returns bool [D].
    """
    chosen = np.zeros(len(hashes), dtype=np.bool_)
    if frac <= 0 or len(hashes) == 0:
        return chosen
    if frac >= 1:
        return ~chosen
    chosen = hashes.astype(np.float64) < frac * 2.0 ** (8 * HASH_BYTES)
    if chosen.any() and not chosen.all():
        return chosen
    smallest = hashes == hashes.min()
    return np.zeros_like(smallest) if smallest.all() else smallest
