"""Learning rate over optimizer steps. Pure functions of the step, so a resume needs no state."""

from __future__ import annotations

import math

from trainer.config.optim import ScheduleConfig, ScheduleName


def warmup_steps(schedule: ScheduleConfig, num_steps: int) -> int:
    """Return the steps of linear warm-up."""
    if schedule.warmup_steps is not None:
        return min(schedule.warmup_steps, num_steps)
    return round(schedule.warmup_frac * num_steps)


def lr_factor(step: int, num_steps: int, schedule: ScheduleConfig) -> float:
    """Return the learning rate of a step as a share of the peak.

    Args:
        step: Zero-based optimizer step, in [0, num_steps).
    Returns:
        Multiplier in [0, 1]. The first warm-up step is 1/warmup, never 0, so no step is wasted.
    Source: wsd: arXiv:2410.05192, section 3; infinite: arXiv:2403.08763, section 7.
    """
    warmup = warmup_steps(schedule, num_steps)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(num_steps - warmup, 1)
    final = schedule.final_frac
    match schedule.name:
        case ScheduleName.constant:
            return 1.0
        case ScheduleName.cosine:
            return _cosine(1.0, final, progress)
        case ScheduleName.linear:
            return _linear(1.0, final, progress)
        case ScheduleName.wsd:
            decay = max(round(schedule.decay_frac * num_steps), 1)
            return _linear(1.0, final, (step - (num_steps - decay)) / decay)
        case ScheduleName.infinite:
            return _infinite(step, warmup, num_steps, schedule)


def _infinite(step: int, warmup: int, num_steps: int, schedule: ScheduleConfig) -> float:
    cooldown = max(round(schedule.cooldown_frac * num_steps), 1)
    anneal = max(round(schedule.decay_frac * num_steps), 1)
    constant = schedule.constant_frac
    if step < warmup + cooldown:
        return _cosine(1.0, constant, (step - warmup) / cooldown)
    return _linear(constant, schedule.final_frac * constant, (step - (num_steps - anneal)) / anneal)


def _cosine(start: float, end: float, progress: float) -> float:
    progress = min(max(progress, 0.0), 1.0)
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * progress))


def _linear(start: float, end: float, progress: float) -> float:
    progress = min(max(progress, 0.0), 1.0)
    return start + (end - start) * progress
