"""Config section of the watch that ranks keep over each other while they work."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class WatchConfig:
    """A rank that stands still, is stopped or dies is named, all ranks write their stacks, and the job starts again."""

    enabled: bool = True
    """Watch for ranks that stand still. False: only for those that fail or die."""
    beat_s: float = 2.0
    """Seconds between two signs of life of a rank. Range: [0.05, 60]."""
    step_s: float = 60.0
    """Seconds that a rank may stand at one place of an optimizer step, or `step_factor` times its slow steps where that
    is more; the first three steps, which compile kernels, may take `load_s`. At least 3 x beat_s, as the next ones."""
    step_factor: float = 5.0
    """Times the 99th percentile of the last 512 steps that a rank may stand at one place of a step. At least 1."""
    load_s: float = 1800.0
    """Seconds at one place while data, weights and a checkpoint are loaded."""
    prove_s: float = 1800.0
    """Seconds at one place of the proofs before the first step."""
    evaluate_s: float = 1800.0
    """Seconds that one batch of an evaluation, or of the comparison with the base, may take."""
    generate_s: float = 1800.0
    """Seconds at one place of benchmark tasks and answers."""
    save_s: float = 1800.0
    """Seconds at one place of a save, such as the writing of a shard."""
    finish_s: float = 3600.0
    """Seconds that the report and the trackers may take at the end of a run."""
    straggler_ratio: float = 1.3
    """A rank whose steps take more than this times the median of all ranks to compute, without its waiting for others,
    is named; 0: none is. More than 1 otherwise."""
    straggler_steps: int = 10
    """Steps over which that is averaged; a rank is named after two such spans in a row. At least 1."""
