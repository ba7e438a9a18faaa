"""Series: one number of metrics.jsonl over steps or tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import TrainerError

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Series:
    """Finite points in the order they were logged, and how many that were not finite were left out."""

    label: str
    points: tuple[Point, ...]
    num_left_out: int = 0
    spreads: tuple[float, ...] = ()
    """Half of the interval of each point, 0 where there is none; empty: none has one."""

    def scaled(self, factor: float) -> Series:
        """Return the series in another unit."""
        points = tuple((x, y * factor) for x, y in self.points)
        return Series(self.label, points, self.num_left_out, tuple(factor * s for s in self.spreads))


@dataclass(frozen=True, slots=True)
class Metrics:
    """The rows of metrics.jsonl; every row has a step, other keys may be missing."""

    path: Path
    rows: tuple[dict[str, Any], ...] = ()

    def series(self, key: str, label: str = "", x: str = "step") -> Series:
        """Return `key` over `x`; rows without both are passed over.

        Raises:
            TrainerError: A value is not a number.
        """
        points = []
        num_left_out = 0
        for row in self.rows:
            if key in row and x in row:
                at, value = self._number(row, x), self._number(row, key)
                if math.isfinite(at) and math.isfinite(value):
                    points.append((at, value))
                else:
                    num_left_out += 1
        return Series(label or key, tuple(points), num_left_out)

    def names(self, prefix: str) -> list[str]:
        """Return what stands behind `prefix` in the keys, in the order it appears."""
        return list(dict.fromkeys(self._names(prefix)))

    def last(self, key: str) -> float | None:
        """Return the last value of `key`."""
        points = self.series(key).points
        return points[-1][1] if points else None

    def _names(self, prefix: str) -> Iterator[str]:
        for row in self.rows:
            for key in row:
                if key.startswith(prefix):
                    yield key.removeprefix(prefix)

    def _number(self, row: dict[str, Any], key: str) -> float:
        value = row[key]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TrainerError(
                f"`{key}` of {self.path}, step {row['step']}, must be a number, but is {value!r} instead. "
                "Delete that line."
            )
        return float(value)


def thinned(points: tuple[Point, ...], num_wanted: int = 240) -> tuple[Point, ...]:
    """Return at most about `num_wanted` points: lowest and highest of each stretch, so spikes stay."""
    if len(points) <= num_wanted:
        return points
    size = math.ceil(2 * len(points) / num_wanted)
    kept: list[Point] = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        ends = {min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])}
        kept += sorted(ends)
    return tuple(kept)
