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
    plus: tuple[tuple[float, Mean], ...] = ()
    """Means with counts of their own that are added, each times a number; of all of them those that are there."""

    def of(self, sums: Mapping[str, float]) -> float | None:
        """Return the mean, None where nothing was counted."""
        more = [(weight, mean.of(sums)) for weight, mean in self.plus]
        found = [(1.0, self._own(sums)), *more]
        parts = [weight * value for weight, value in found if value is not None]
        return sum(parts) if parts else None

    def _own(self, sums: Mapping[str, float]) -> float | None:
        count = sum(sums.get(name, 0.0) for name in self.per)
        if count <= 0 or (self.needs is not None and sums.get(self.needs, 0.0) <= 0):
            return None
        return sum(sums.get(name, 0.0) for name in self.over) / count
