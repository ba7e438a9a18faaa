"""Where values stand on an axis: evenly by their size, by its logarithm, or one beside the other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.report.number import compact, tick_labels, ticks

MAX_NAMED = 7
"""With so many different values or fewer each has its own tick."""
LOG_RATIO = 10.0
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


def chosen_scale(values: Sequence[str]) -> Scale:
    """Return the axis of values that a person or a sampler chose, as they stand in overrides.

    Each has a tick when they are few. Words stand beside each other in the order in which they appear.
    """
    different = list(dict.fromkeys(values))
    numbers = [_number(text) for text in different]
    found = {text: number for text, number in zip(different, numbers, strict=True) if number is not None}
    if len(found) < len(different):
        return _even(different)
    ordered = sorted(different, key=lambda text: found[text])
    scale = measured_scale(found)
    if len(ordered) > MAX_NAMED:
        return scale
    if any(scale.places[b] - scale.places[a] < LEAST_GAP for a, b in itertools.pairwise(ordered)):
        return _even(ordered)
    return Scale(
        scale.places, tuple((scale.places[text], compact(found[text])) for text in ordered), scale.is_log
    )


def measured_scale(numbers: dict[str, float]) -> Scale:
    """Return the axis of numbers, each under its own name, with round ticks between the lowest and the highest."""
    low, high = min(numbers.values()), max(numbers.values())
    if low == high:
        return Scale(dict.fromkeys(numbers, 0.5), ((0.5, compact(low)),))
    is_log = low > 0 and high / low >= LOG_RATIO
    bend = math.log10 if is_log else float
    start, stop = bend(low), bend(high)

    def place(number: float) -> float:
        return (bend(number) - start) / (stop - start)

    places = {text: place(number) for text, number in numbers.items()}
    if is_log:
        return Scale(places, tuple((place(mark), compact(mark)) for mark in _decades(low, high)), True)
    marks = [tick for tick in ticks(low, high, 5) if low <= tick <= high]
    return Scale(places, tuple(zip(map(place, marks), tick_labels(marks), strict=True)) if marks else ())


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
    marks: list[float] = []
    for factors in ((1,), (1, 3), (1, 2, 5)):
        marks = [factor * 10.0**exponent for exponent in exponents for factor in factors]
        marks = [mark for mark in marks if low * 0.999 <= mark <= high * 1.001]
        if len(marks) >= 3:
            break
    return marks[:: -(-len(marks) // MAX_NAMED)]
