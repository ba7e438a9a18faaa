"""A reported number that is made of named sums."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mean:
    """A number that is reported: sums over counts of all steps between two log lines."""

    name: str
    over: tuple[str, ...]
    """Names of the sums that are added up."""
    per: tuple[str, ...]
    """Names of the counts that divide them; without any counted there is no mean."""
    needs: str | None = None
    """A count without which the mean tells nothing new and is left out."""

    def of(self, sums: Mapping[str, float]) -> float | None:
        """Return the mean, None where nothing was counted."""
        count = sum(sums.get(name, 0.0) for name in self.per)
        if count <= 0 or (self.needs is not None and sums.get(self.needs, 0.0) <= 0):
            return None
        return sum(sums.get(name, 0.0) for name in self.over) / count
