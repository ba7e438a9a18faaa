"""Holds the general held-out loss near the base model's by moving the replay ratio, within bounds.

Pure: what it decides depends on its arguments alone, so a resumed run decides the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainer.config.replay import ReplayConfig

DIGITS = 3
"""Of a change as a share of the largest: losses that other ranks add up, in another order, come to the same one."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What the controller saw and chose."""

    ratio: float
    previous: float
    rise_nats: float
    """Mean rise over the base of the watched sets."""


def decide(
    replay: ReplayConfig, previous: float, losses: dict[str, float], base: dict[str, float], watch: list[str]
) -> Decision:
    """Return the next ratio: up while the loss has risen by more than epsilon, down while it is below half of it.

    The change is proportional to the distance and at most `max_change`; between half of epsilon and epsilon
    nothing moves, so that it does not swing. A loss that is not finite counts as the worst.

    Args:
        losses, base: Held-out loss by source, now and before the first step, in nats.
    """
    rises = [losses[name] - base[name] for name in watch if name in losses and name in base]
    rise = sum(rises) / len(rises) if rises else 0.0
    if not rise <= replay.epsilon:  # also true for NaN
        excess = (rise - replay.epsilon) / replay.epsilon
        share = excess if excess < 1 else 1.0
    elif rise < replay.epsilon / 2:
        share = -min((replay.epsilon / 2 - rise) / (replay.epsilon / 2), 1.0)
    else:
        share = 0.0
    change = replay.max_change * round(share, DIGITS)
    ratio = min(max(previous + change, replay.min_ratio), replay.max_ratio)
    return Decision(ratio, previous, rise)
