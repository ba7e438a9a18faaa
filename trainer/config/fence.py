"""Whether this process may still write in a place that it holds: asked before anything appears there, or goes.

The place is a run directory, and who answers is its lease (trainer/runtime/lease.py). What asks: files and folders that
appear, names that change, what is removed, and lines that are appended.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

LOOK_S = 0.5
"""Lines are appended without another look for so long: half of what a new holder waits for (lease.SETTLE_S)."""
_held: dict[Path, tuple[Callable[[], None], float]] = {}
"""By place: what raises where it was lost, and when that was asked last."""


def check_publish(target: Path, every_s: float = 0.0) -> None:
    """Raise where a place is in a directory that this process held and lost; nothing elsewhere.

    Args:
        every_s: The last answer is good for so long.
    Raises:
        CheckpointError: Another run has the directory.
    """
    now = time.monotonic()
    due = [place for place, (_, asked_s) in list(_held.items()) if now - asked_s >= every_s]
    if not due:
        return
    # A link in it may lead elsewhere; the name is in the directory all the same.
    real = Path(os.path.realpath(target.parent)) / target.name
    for place in due:
        if real.is_relative_to(place) and place in _held:
            check, _ = _held[place]
            _held[place] = check, float("-inf")  # where it raises, no earlier answer is good any more
            check()
            _held[place] = check, now


@contextlib.contextmanager
def held(place: Path, check: Callable[[], None]) -> Iterator[None]:
    """Ask `check` before anything appears in a place, as long as the block lasts."""
    real = Path(os.path.realpath(place))
    before = _held.get(real)
    _held[real] = check, float("-inf")
    try:
        yield
    finally:
        if before is None:
            del _held[real]
        else:
            _held[real] = before
