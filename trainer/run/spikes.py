"""Steps whose loss or gradient norm is far beyond what is usual, by a bound that outliers do not move.

All that decides is in the state of the run, so a resumed run decides as one that was not interrupted.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from trainer.checkpoint.state import TrainState
from trainer.config.spikes import SpikeConfig, SpikePolicy
from trainer.dist.mesh import Mesh

LEAST_SHARE = 0.02
"""Of the median, that the median absolute deviation counts as at least: steps that are all alike have none."""
LOSS, NORM = "loss", "grad_norm"


@dataclass(frozen=True, slots=True)
class Spike:
    """A number of a step beyond its bound."""

    number: str
    """loss or grad_norm."""
    value: float
    bound: float
    is_refused: bool = False
    """The step was not applied."""


class SpikeWatch:
    """Judges steps. Every rank, with numbers that are the same on all."""

    def __init__(self, options: SpikeConfig, mesh: Mesh) -> None:
        """Take what counts as a spike."""
        self._options = options
        self._mesh = mesh

    @property
    def skips(self) -> bool:
        """Tell whether a step must be judged before it is applied."""
        return self._options.policy is SpikePolicy.skip

    def rewinds(self, state: TrainState) -> bool:
        """Tell whether a spike is to be rewound."""
        return self._options.policy is SpikePolicy.rewind and state.rewinds < self._options.max_rewinds

    def bounds(self, state: TrainState) -> dict[str, float]:
        """Return the bound of each number after a state; none before there were enough good steps."""
        options = self._options
        if options.policy is SpikePolicy.off:
            return {}
        return {
            name: _bound(values, options.deviations)
            for name, values in state.usual.items()
            if len(values) >= options.least
        }

    def find(self, state: TrainState, numbers: Mapping[str, float]) -> Spike | None:
        """Return the first number of a step that is beyond its bound, as rank 0 sees it. Collective: every rank.

        Args:
            state: Before the step.
        """
        found: Spike | None = None
        for name, bound in self.bounds(state).items():
            if found is None and numbers[name] > bound:
                found = Spike(name, numbers[name], bound, self.skips)
        # What follows must be the same everywhere, whatever rounding does on one of the ranks.
        answer: Spike | None = self._mesh.broadcast(found) if self.skips or self.rewinds(state) else found
        return answer

    def learn(self, state: TrainState, numbers: Mapping[str, float], is_spike: bool) -> None:
        """Take a step that was sound into what is usual, unless it was a spike."""
        if self._options.policy is SpikePolicy.off:
            return
        state.spikes_in_a_row = state.spikes_in_a_row + 1 if is_spike else 0
        if state.spikes_in_a_row == self._options.max_in_a_row:
            state.usual, state.spikes_in_a_row = {}, 0  # another level: what is usual is learnt anew
        elif not is_spike:
            for name, value in numbers.items():
                kept = [*state.usual.get(name, []), value]
                state.usual[name] = kept[-self._options.window :]

    def pass_over(self, state: TrainState, spike_step: int) -> None:
        """Pass the data of a spike over from now on, in a state that was gone back to."""
        steps = range(spike_step, spike_step + self._options.rewind_skips)
        state.passed_over = sorted({*state.passed_over, *steps})

    @property
    def rewind_steps(self) -> int:
        """Return the steps to go back at least."""
        return self._options.rewind_steps


def _bound(values: list[float], deviations: float) -> float:
    median = statistics.median(values)
    spread = statistics.median([abs(value - median) for value in values])
    return median + deviations * max(spread, LEAST_SHARE * abs(median))
