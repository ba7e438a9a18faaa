"""Weights of rows and turns: numbers that scale the loss of what is learnt of them; 0 leaves it out. Pure."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from trainer.config.data import TokenValue
from trainer.data.rows.message import short
from trainer.data.types import RowError

WEIGHT = TokenValue.weight.value
FIX = "Write a number of 0 (not learnt) or more, such as 0.5 or 1."
SMALLEST, LARGEST = (float(limit) for limit in (np.finfo(np.float32).tiny, np.finfo(np.float32).max))
"""Between them float32, which keeps weights, has all its digits."""


def row_weight(value: Any, column: str) -> float:
    """Return the weight that a row says in a column.

    Raises:
        RowError: If it is none.
    """
    return _kept(_number(value, f"in column '{column}'"), value)


def turn_weight(value: Any, of_row: float) -> float:
    """Return the weight of a turn that says one, in a row of some weight: their product.

    Raises:
        RowError: If it says none, or float32 cannot hold the product.
    """
    own = _kept(_number(value, "in `weight` of a turn"), value)
    if own == 0 or of_row == 0:
        return 0.0
    return _kept(own * of_row, f"{own} in a row of weight {of_row}")


def refuse_null(turn: Any) -> None:
    """Refuse a turn whose weight is null: that is neither a number nor left out.

    Raises:
        RowError: If it is.
    """
    if isinstance(turn, dict) and WEIGHT in turn and turn[WEIGHT] is None:
        _number(None, "in `weight` of a turn")


def _number(value: Any, where: str) -> float:
    try:
        number = float(value) if isinstance(value, bool | int | float) else math.nan
    except OverflowError:
        number = math.inf
    if not (math.isfinite(number) and number >= 0):
        raise RowError(f"hold a number of at least 0 {where}", short(value), FIX)
    return number


def _kept(weight: float, said: Any) -> float:
    if weight and not SMALLEST <= weight <= LARGEST:
        rule = f"hold weights of 0, or between {SMALLEST:.2g} and {LARGEST:.2g}"
        raise RowError(rule, said if isinstance(said, str) else short(said), FIX)
    return float(np.float32(weight))
