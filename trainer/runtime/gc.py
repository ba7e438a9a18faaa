"""Collect garbage on a common step of all ranks instead of whenever one of them feels like it.

One rank that collects in the middle of a step makes all others wait in the next collective.
"""

from __future__ import annotations

import gc


class ManualGc:
    """Switches automatic collection off until `close`.

    Ranks:
        Every rank, with the same number of steps.
    Source:
        performance.md, section 3.12.
    """

    def __init__(self, every_steps: int) -> None:
        """Collect once and freeze what is left, so that later collections only see new objects.

        Build it after the model and the engine. 0 leaves automatic collection on.
        """
        self._every_steps = every_steps
        self._was_enabled = gc.isenabled()
        if every_steps > 0:
            gc.disable()
            gc.collect()
            gc.freeze()

    def collect_if_due(self, step: int) -> bool:
        """Collect when `step` is a multiple of the interval; tell whether it did."""
        if self._every_steps <= 0 or step % self._every_steps != 0:
            return False
        gc.collect()
        return True

    def close(self) -> None:
        """Go back to automatic collection."""
        if self._every_steps > 0:
            gc.unfreeze()
            if self._was_enabled:
                gc.enable()
