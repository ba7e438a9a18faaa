"""By how much the chosen answers of a micro-batch have to be ahead."""

from __future__ import annotations

import numpy as np

from trainer.config.data import TokenValue
from trainer.data.pack.collate import IGNORE, MicroBatch
from trainer.data.types import Float64s


def margins(micro: MicroBatch) -> Float64s:
    """Return the margin of every segment's pair, float64 [S]; 0 where rows say none, and at padding."""
    values_N = micro.values_BT[TokenValue.margin.value].reshape(-1)
    learnt = np.flatnonzero(micro.labels_BT.reshape(-1) != IGNORE)
    found = np.zeros(len(micro.units_S), dtype=np.float64)
    found[micro.segments_BT.reshape(-1)[learnt]] = values_N[learnt]  # all tokens of a pair have one
    return found
