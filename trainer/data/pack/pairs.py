"""Where the pairs of a micro-batch are. Shapes: G segments, P pairs."""

from __future__ import annotations

import numpy as np

from trainer.data.types import Int64s


def first_of_pairs(units_G: Int64s) -> Int64s:
    """Return the segment of each pair's chosen answer, int64 [P]; the rejected one is the next."""
    if len(units_G) < 2:
        return np.empty(0, dtype=np.int64)
    return np.flatnonzero((units_G[:-1] == units_G[1:]) & (units_G[:-1] >= 0))
