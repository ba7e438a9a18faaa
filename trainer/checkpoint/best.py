"""Which checkpoint is the best: by one number, among those that are saved. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from trainer.checkpoint.state import TrainState
from trainer.config.metric import Direction

Best = tuple[str, float | None, int | None]
"""By which number, its value, and the step."""


def best_of(state: TrainState) -> Best:
    """Return the best checkpoint that a state knows of."""
    return state.best_metric, state.best_value, state.best_step


@dataclass(frozen=True, slots=True)
class BestRule:
    """By which number a checkpoint is the best."""

    metric: str
    direction: Direction
    saves_at_once: bool
    """A new best is saved when it is measured; else the best is one of those that are saved anyway."""

    def improves(self, state: TrainState, measured: Mapping[str, float]) -> bool:
        """Tell whether what was measured after this step makes it the best; never among non-finite steps."""
        value = measured.get(self.metric, math.nan)
        if not math.isfinite(value) or state.step == 0 or state.bad_steps_in_a_row:
            return False
        best = state.best_value if state.best_metric == self.metric else None
        if best is None:
            return True
        return value < best if self.direction is Direction.minimize else value > best

    def take(self, state: TrainState, measured: Mapping[str, float]) -> None:
        """Remember a step that is about to be saved as the best, if it is."""
        if self.improves(state, measured):
            state.best_metric, state.best_value = self.metric, measured[self.metric]
            state.best_step = state.step
        elif state.best_metric != self.metric:
            # Of another number, which this attempt is not asked about: that checkpoint is the best no more.
            state.best_metric, state.best_value, state.best_step = self.metric, None, None
