"""Holds the general held-out loss, and the KL, near the base model's by moving the replay ratio, within bounds.

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
    kl_nats: float | None = None
    """KL(base || model) on the fixed conversations; None where it does not count."""
    decided_by: str = "loss"
    """`loss` or `kl`: the worse of the two."""


def decide(
    replay: ReplayConfig,
    previous: float,
    losses: dict[str, float],
    base: dict[str, float],
    watch: list[str],
    kl: float | None = None,
) -> Decision:
    """Return the next ratio: up while the loss has risen by more than epsilon, down while it is below half of it.

    The change is proportional to the distance and at most `max_change`; between half of epsilon and epsilon
    nothing moves, so that it does not swing. What is not finite counts as the worst. With `epsilon_kl` the KL has a
    change of its own, and the higher one is made.

    Args:
        losses, base: Held-out loss by source, now and before the first step, in nats.
        kl: To the base, in nats.
    """
    rises = [losses[name] - base[name] for name in watch if name in losses and name in base]
    rise = sum(rises) / len(rises) if rises else 0.0
    shares = {"loss": _share(rise, replay.epsilon)}
    if replay.epsilon_kl is None:
        kl = None
    elif kl is not None:
        shares["kl"] = _share(kl, replay.epsilon_kl)
    decided_by = max(shares, key=lambda name: shares[name])
    change = replay.max_change * shares[decided_by]
    ratio = min(max(previous + change, replay.min_ratio), replay.max_ratio)
    return Decision(ratio, previous, rise, kl, decided_by)


def _share(found: float, epsilon: float) -> float:
    """Return the change that is asked for, as a share in [-1, 1] of the largest."""
    if not found <= epsilon:  # also true for NaN
        excess = (found - epsilon) / epsilon
        return round(excess, DIGITS) if excess < 1 else 1.0
    if found < epsilon / 2:
        return round(-min((epsilon / 2 - found) / (epsilon / 2), 1.0), DIGITS)
    return 0.0
