"""A clock that stands still unless somebody sleeps, for code whose behaviour is about time."""

from __future__ import annotations

from collections.abc import Callable


class Clock:
    """Takes the place of the module `time` in a module of ours."""

    def __init__(self) -> None:
        self.now = 0.0
        self._planned: list[tuple[float, Callable[[], object]]] = []

    def at(self, time_s: float, action: Callable[[], object]) -> None:
        """Plan what happens elsewhere at a time."""
        self._planned.append((time_s, action))
        self._planned.sort(key=lambda one: one[0])

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let time pass, and what was planned for it happen."""
        end = self.now + seconds
        while self._planned and self._planned[0][0] <= end:
            self.now, action = self._planned.pop(0)
            action()
        self.now = end
