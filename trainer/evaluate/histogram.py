"""How numbers are spread: counts of equal bins around 0. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.data.types import Float64s

NUM_BINS = 20


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts between edges; a number on an edge counts above it, on the last below."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]

    def to_plain(self) -> dict[str, Any]:
        """Return what is kept in files."""
        return {"edges": list(self.edges), "counts": list(self.counts)}


NOTHING = Histogram((), ())


def histogram_of(numbers: Float64s) -> Histogram:
    """Count numbers in bins from -m to m, so that 0 is an edge; m is the least of 1, 2 or 5 times a power of ten.

    Numbers that are not finite are left out.
    """
    finite = numbers[np.isfinite(numbers)]
    edge = _round_up(float(np.abs(finite).max(initial=0.0)))
    edges = np.linspace(-edge, edge, NUM_BINS + 1)
    counts, _ = np.histogram(finite, bins=edges)
    return Histogram(tuple(edges.tolist()), tuple(counts.tolist()))


def _round_up(largest: float) -> float:
    if largest <= 0:
        return 1.0
    unit = 10.0 ** math.floor(math.log10(largest))
    return next((step * unit for step in (1.0, 2.0, 5.0) if largest <= step * unit), 10.0 * unit)
