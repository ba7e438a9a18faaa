"""Lines about something that takes long: how far it is, for how long, and how much is left."""

from __future__ import annotations

import time
from collections.abc import Callable

from trainer.metrics.console import duration_text

EVERY_S = 15.0
"""Seconds between two lines, and before the first: what is over sooner says nothing."""


class LongWork:
    """Tells of work whose amount is known, at most every so many seconds."""

    def __init__(
        self,
        total: float,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        every_s: float | None = None,
    ) -> None:
        """Take the whole amount, in any unit, and begin; without `every_s` it is EVERY_S."""
        self._total = total
        self._every_s = EVERY_S if every_s is None else every_s
        self._say = say
        self._clock = clock
        self._begun_s = self._said_s = clock()

    def at(self, done: float, where: str) -> None:
        """Say where the work stands with so much of it done, unless something was said just now."""
        now_s = self._clock()
        if now_s - self._said_s < self._every_s:
            return
        self._said_s = now_s
        so_far_s = now_s - self._begun_s
        left = max(self._total - done, 0.0)
        ahead = f", about {duration_text(so_far_s * left / done)} left" if done and left else ""
        self._say(f"{where}: {duration_text(so_far_s)} so far{ahead}.")
