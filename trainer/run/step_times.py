"""Where the time of a step went, and what comes between those that are left."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Seconds of a step and the part of it spent waiting for data; what is still to come beside steps."""

    step_s: float
    data_wait_s: float
    evaluations_left: int = 0
    rounds_left: int = 0
    """Rounds of answers that are to be sampled."""
