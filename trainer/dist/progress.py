"""Where this process is in its run, and since when: the watch tells it to the other ranks.

There is one of it, as there is one main thread: whoever begins a phase or passes a place says so here.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum


class Phase(Enum):
    """What a rank is at."""

    load = "load"
    """Joining, data, weights, engine, and a checkpoint to go on from."""
    prove = "prove"
    """What is proved before the first step."""
    step = "step"
    """An optimizer step, and the wait for its data."""
    evaluate = "evaluate"
    """Held-out losses, the base's and the recovery probe among them."""
    generate = "generate"
    """Benchmark tasks and answers."""
    save = "save"
    """A checkpoint."""
    finish = "finish"
    """The report, and what trackers are still told."""


WARM_UP_STEPS = 3
"""Steps of a process that may take as long as loading: kernels are compiled and tuned in them."""
NUM_KEPT = 512


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a rank may stand at one place, in seconds."""

    step_s: float
    step_factor: float
    """Times the 99th percentile of steps so far, where that is more than `step_s`."""
    of_phase: Mapping[Phase, float]
    """Those of all phases but `step`."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A place in a run. Two ranks compare by `entry` and `mark`: the lesser one is behind."""

    phase: Phase
    step: int
    entry: int
    """Phases that were begun before."""
    mark: int
    """Places passed in this phase, the same on every rank."""
    since: float
    """On the clock of this process."""


class Progress:
    """Where a process is. Written by its main thread, read by others."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Stand nowhere: nobody is watched until a phase begins."""
        self._clock = clock
        self._lock = threading.Lock()
        self._place: Standing | None = None
        self._num_entries = 0
        self._steps: deque[float] = deque(maxlen=NUM_KEPT)
        self._num_steps = 0
        self._p99_s = 0.0
        self.on_phase: Callable[[], None] = lambda: None
        """Called when another phase or limit begins: whoever waits must know it before this process can be silent."""

    def begin(self, phase: Phase, step: int | None = None) -> None:
        """Begin a phase, or the next step. Every rank, in the same order."""
        before = self._place
        with self._lock:
            number = step if step is not None else before.step if before is not None else 0
            self._place = Standing(phase, number, self._num_entries, 0, self._clock())
            self._num_entries += 1
        if before is None or before.phase is not phase:
            self.on_phase()

    def mark(self) -> None:
        """Pass a place that every rank passes."""
        self._move(1)

    def alive(self) -> None:
        """Say that this rank gets on with what it does alone, while others may wait for it."""
        self._move(0)

    def step_took(self, seconds: float) -> None:
        """Learn how long a step takes; the first ones of a process say nothing of it."""
        self._num_steps += 1
        if self._num_steps > WARM_UP_STEPS:
            self._steps.append(seconds)
            self._p99_s = sorted(self._steps)[math.ceil(0.99 * len(self._steps)) - 1]
        if self._num_steps == WARM_UP_STEPS + 1:
            self.on_phase()

    def end(self) -> None:
        """Stand nowhere again."""
        with self._lock:
            self._place = None

    def forgive(self, seconds: float) -> None:
        """Leave out a time in which the whole process was stopped and has gone on."""
        with self._lock:
            if self._place is not None:
                self._place = _moved(self._place, min(self._place.since + seconds, self._clock()), 0)

    @property
    def place(self) -> Standing | None:
        """Return where this process is; None: it is not watched."""
        return self._place

    def limit_s(self, limits: Limits) -> float:
        """Return how long it may stand where it is."""
        phase = self._place.phase if self._place is not None else Phase.load
        if phase is not Phase.step:
            return limits.of_phase[phase]
        if not self._steps:
            return max(limits.of_phase[Phase.load], limits.step_s)
        return self.step_limit_s(limits)

    def step_limit_s(self, limits: Limits) -> float:
        """Return how long a step may take that is none of the first."""
        return max(limits.step_s, limits.step_factor * self._p99_s)

    def _move(self, num_marks: int) -> None:
        with self._lock:
            if self._place is not None:
                self._place = _moved(self._place, self._clock(), num_marks)


def _moved(place: Standing, since: float, num_marks: int) -> Standing:
    return Standing(place.phase, place.step, place.entry, place.mark + num_marks, since)


PROGRESS = Progress()
"""Of this process."""
