"""Config section of steps whose loss or gradient norm is far beyond what is usual."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class SpikePolicy(Enum):
    """What is done about a spike."""

    off = "off"
    """Nothing: nobody looks."""
    log = "log"
    """It is said and recorded."""
    skip = "skip"
    """The step is not applied; its data counts as consumed."""
    rewind = "rewind"
    """Training goes back to a checkpoint before it, and passes the data of the spike over. Source: PaLM
    (arXiv:2204.02311), section 5.1."""


@dataclass
class SpikeConfig:
    """Steps whose loss or gradient norm is beyond the median + `deviations` x the median absolute deviation."""

    policy: SpikePolicy = SpikePolicy.log
    """off, log, skip or rewind."""
    window: int = 128
    """Good steps before, of which the median is taken. At least `least`."""
    least: int = 32
    """Good steps after which the first one is judged. At least 4."""
    deviations: float = 10.0
    """Median absolute deviations beyond the median; one counts as 2 % of the median at least. More than 0."""
    max_in_a_row: int = 8
    """Spikes in a row after which what is usual is learnt anew: the data has changed, and the model is not broken. At
    least 1."""
    rewind_steps: int = 100
    """Steps to go back at least: to the newest checkpoint so far back, or the oldest there is. At least 0."""
    rewind_skips: int = 1
    """Steps, that of the spike first, whose data is passed over after it was rewound. At least 1."""
    max_rewinds: int = 3
    """Rewinds of a run after which spikes are only said. At least 1."""
