"""When to save, where nobody said: as seldom as saves are dear and as often as nodes fail.

Saves every T seconds cost C / T of the time, and a failure costs T / 2 on average: least together at sqrt(2 C M). C are
the seconds that a save keeps steps waiting, M those between two failures of the job.

Source: Young 1974, doi:10.1145/361147.361115; Daly 2006, doi:10.1016/j.future.2004.11.016.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

FIRST_S = 300.0
"""Until the first save, which tells what one takes, and that the disk takes it."""
LEAST_S = 60.0
MOST_S = 3600.0
"""Nobody wants to lose more, however seldom nodes fail."""
_DAY_S = 86400.0


def interval_s(stall_s: float, write_s: float, node_days: float, num_nodes: int) -> float:
    """Return the seconds between two saves.

    Args:
        stall_s: For which steps wait.
        write_s: Until it is on disk; the next one waits for it.
        node_days: Days between two failures of a node.
    """
    between_failures_s = node_days * _DAY_S / num_nodes
    best = math.sqrt(2 * stall_s * between_failures_s)
    return min(max(best, 2 * write_s, LEAST_S), max(MOST_S, 2 * write_s))


class SaveClock:
    """Says on the first rank when the next save is due; the others hear of it with the sums of a step."""

    def __init__(
        self, node_days: float, num_nodes: int, speaks: bool, now: Callable[[], float] = time.monotonic
    ) -> None:
        """Start to count.

        Args:
            speaks: This is the first rank.
        """
        self._node_days, self._num_nodes = node_days, num_nodes
        self._speaks, self._now = speaks, now
        self._last = now()
        self.interval_s = FIRST_S

    @property
    def urgency(self) -> int:
        """Return how often the time has passed since the last save; 0 on ranks that do not speak."""
        return int((self._now() - self._last) / self.interval_s) if self._speaks else 0

    def begins(self) -> None:
        """Count anew, from the beginning of a save."""
        self._last = self._now()

    def took(self, stall_s: float, write_s: float) -> None:
        """Learn what a save takes."""
        self.interval_s = interval_s(stall_s, write_s, self._node_days, self._num_nodes)
