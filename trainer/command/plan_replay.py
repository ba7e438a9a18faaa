"""What `palimpsest plan` says of replay that is chosen: the forward passes that choosing takes."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config.data import Role
from trainer.config.replay import RatioController, ReplayChoice
from trainer.config.schema import RunConfig
from trainer.config.tune import TuneMethod
from trainer.mix.ratio import mean_ratio, starting_ratio

FORWARD, FORWARD_FROZEN = 1 / 3, 1 / 2
"""Of the work of a trained token that a forward pass takes: a backward pass is two, or one beside a frozen base."""


def replay_notes(config: RunConfig) -> Iterator[str]:
    """Yield a note on the cost of choosing; none where replay is drawn in its permutation's order."""
    replay = config.replay
    if replay.choice is not ReplayChoice.losing:
        return
    num_steps = config.train.max_steps
    if num_steps is not None and not replay.chooses_in(num_steps):
        yield (
            f"replay.choice=losing chooses nothing in {num_steps} steps with "
            f"replay.choice_every={replay.choice_every}: training will refuse it. Lower replay.choice_every."
        )
        return
    weights = {role: [s.weight for s in config.data.sources.values() if s.role is role] for role in Role}
    ratio = mean_ratio(replay, starting_ratio(replay, weights[Role.target], weights[Role.replay]))
    most = ""
    if replay.controller is RatioController.hold:
        ratio, most = max(replay.max_ratio, ratio), "at most "
    share = FORWARD if config.tune.method is TuneMethod.full else FORWARD_FROZEN
    scored = ratio * (replay.choice_of + 1)
    yield (
        f"replay.choice=losing scores {replay.choice_of} replay packs for each that is drawn, and the base each of "
        f"those that may be once: forward passes, a pack at a time, over {most}{scored:.1%} of as many tokens as the "
        f"run trains on, which is {most}{scored * share:.1%} more work. The time of a step leaves it out."
    )
