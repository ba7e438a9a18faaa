"""By how much the chosen answer of a pair has to be ahead of the rejected one. Pure."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from trainer.data.rows.message import short
from trainer.data.types import RowError

FIX = "Write a number, such as 0.5 or 2, or 0 for none."
LARGEST = float(np.finfo(np.float32).max)
"""Stores keep float32."""


def row_margin(value: Any, column: str) -> float:
    """Return the margin that a row says in a column, as float32 keeps it.

    Raises:
        RowError: If it is no finite number.
    """
    try:
        number = float(value) if type(value) in (int, float) else math.nan
    except OverflowError:
        number = math.inf
    if not abs(number) <= LARGEST:
        raise RowError(f"hold a number in column '{column}'", short(value), FIX)
    return float(np.float32(number))
