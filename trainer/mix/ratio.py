"""The replay ratio over a run: a pure function of the share of its tokens that is done."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from trainer.config.data import Role, SourceConfig
from trainer.config.many import many
from trainer.config.replay import RatioSchedule, ReplayConfig, Shift

RATIO_BY_SHIFT = {Shift.weak: 0.05, Shift.strong: 0.25}
"""Ibrahim et al. 2024 (arXiv:2403.08763): 5 % suffices for a weak shift, 25 % for a strong one."""
MEAN_POINTS = 10_000
UNLIKE = 0.005
"""A share that is so far from the one asked for is told with it."""


def unlike_asked(num_packs: int) -> str:
    """Say why a share of a run of so many packs is not the one asked for: the plan is within half a pack of it."""
    return (
        f"Packs are drawn whole, and the run draws {many(num_packs, 'pack')}: one more or less of replay is about "
        f"{1 / num_packs:.1%} of the tokens. A longer run comes nearer to what was asked."
    )


def starting_ratio(
    replay: ReplayConfig, target_weights: Sequence[float | None], replay_weights: Sequence[float | None]
) -> float:
    """Return the ratio asked for: given, else by shift, else by the weights of all sources, else 5 %.

    0 without replay sources.
    """
    if not replay_weights:
        return 0.0
    if replay.ratio is not None:
        return replay.ratio
    if replay.shift is not None:
        return RATIO_BY_SHIFT[replay.shift]
    weights = [w for w in [*target_weights, *replay_weights] if w is not None]
    if len(weights) == len(target_weights) + len(replay_weights):
        return sum(w for w in replay_weights if w is not None) / sum(weights)
    return RATIO_BY_SHIFT[Shift.weak]


def replay_weights(sources: Mapping[str, SourceConfig], replay: ReplayConfig) -> dict[str, float] | None:
    """Return what a supervised token of each source counts in the loss; None where all count alike."""
    if replay.loss_weight == 1:
        return None
    return {name: replay.loss_weight if s.role is Role.replay else 1.0 for name, s in sources.items()}


def ratio_at(replay: ReplayConfig, ratio: float, done: float) -> float:
    """Return the ratio when a share `done` of the run's tokens, in [0, 1), is done.

    Args:
        ratio: What `starting_ratio` returned.
    """
    match replay.schedule:
        case RatioSchedule.constant:
            return ratio
        case RatioSchedule.linear:
            return ratio + (_end(replay) - ratio) * done
        case RatioSchedule.cosine:
            return _end(replay) + (ratio - _end(replay)) * 0.5 * (1.0 + math.cos(math.pi * done))
        case RatioSchedule.front_loaded:
            return min(2.0 * ratio, MOST) if done < replay.front_frac else ratio
        case RatioSchedule.piecewise:
            passed = [value for share, value in replay.points if share <= done]
            return passed[-1] if passed else ratio


MOST = 0.99
"""Doubling never takes the target away altogether."""


def mean_ratio(replay: ReplayConfig, ratio: float) -> float:
    """Return the mean ratio over a run."""
    return sum(ratio_at(replay, ratio, (i + 0.5) / MEAN_POINTS) for i in range(MEAN_POINTS)) / MEAN_POINTS


def _end(replay: ReplayConfig) -> float:
    assert replay.end_ratio is not None
    return replay.end_ratio
