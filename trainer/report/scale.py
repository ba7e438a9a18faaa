"""Where the values of a parameter stand on an axis: even, logarithmic, or one beside the other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.report.number import short, tick_labels, ticks

MAX_NAMED = 7
"""With so many different values or fewer each has its own tick."""
LOG_RATIO = 20.0
"""Positive values that lie so far apart are drawn on a logarithmic axis."""
LEAST_GAP = 0.09
"""Ticks closer than this share of the axis would write over each other."""


@dataclass(frozen=True, slots=True)
class Scale:
    """An axis from 0 to 1."""

    places: dict[str, float]
    """Where each value stands."""
    ticks: tuple[tuple[float, str], ...]
    """Place and label."""
    is_log: bool = False


def make_scale(values: Sequence[str]) -> Scale:
    """Return the axis of values as they stand in overrides; numbers in order, words as they appear."""
    different = list(dict.fromkeys(values))
    numbers = {text: _number(text) for text in different}
    found = {text: number for text, number in numbers.items() if number is not None}
    if len(found) < len(different):
        return _even(different)
    ordered = sorted(different, key=lambda text: found[text])
    low, high = found[ordered[0]], found[ordered[-1]]
    if low == high:
        return Scale({text: 0.5 for text in ordered}, ((0.5, short(low)),))
    is_log = low > 0 and high / low >= LOG_RATIO
    bend = math.log10 if is_log else float
    start, stop = bend(low), bend(high)

    def place(number: float) -> float:
        return (bend(number) - start) / (stop - start)

    places = {text: place(number) for text, number in found.items()}
    if len(ordered) <= MAX_NAMED:
        steps = itertools.pairwise(ordered)
        if any(places[after] - places[before] < LEAST_GAP for before, after in steps):
            return _even(ordered)
        return Scale(places, tuple((places[text], short(found[text])) for text in ordered), is_log)
    marks = _decades(low, high) if is_log else [tick for tick in ticks(low, high, 5) if low <= tick <= high]
    labels = [short(mark) for mark in marks] if is_log else tick_labels(marks)
    return Scale(places, tuple((place(m), text) for m, text in zip(marks, labels, strict=True)), is_log)


def _even(texts: Sequence[str]) -> Scale:
    """Return an axis with the values at even distances."""
    last = max(len(texts) - 1, 1)
    places = {text: number / last if len(texts) > 1 else 0.5 for number, text in enumerate(texts)}
    return Scale(places, tuple((places[text], text.strip("'\"")) for text in texts))


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _decades(low: float, high: float) -> list[float]:
    """Return round values within the range, as finely as gives at least three, and no more than seven."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5)):
        marks = [factor * 10.0**exponent for exponent in exponents for factor in factors]
        marks = [mark for mark in marks if low * 0.999 <= mark <= high * 1.001]
        if len(marks) >= 3:
            break
    return marks[:: -(-len(marks) // MAX_NAMED)] if marks else [low, high]
