"""Rules about steps that are watched for spikes and for faults of the hardware. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config.rule import Problem, must
from trainer.config.schema import RunConfig
from trainer.config.spikes import SpikePolicy


def spike_problems(config: RunConfig) -> Iterator[Problem]:
    """Yield every broken rule."""
    train, spikes = config.train, config.train.spikes
    for name, least, usual in (
        ("least", 4, 32),
        ("window", max(spikes.least, 4), 128),
        ("max_in_a_row", 1, 8),
        ("rewind_steps", 0, 100),
        ("rewind_skips", 1, 1),
        ("max_rewinds", 1, 3),
    ):
        if getattr(spikes, name) < least:
            shown = max(usual, least)
            yield must(f"train.spikes.{name}", f"at least {least}", getattr(spikes, name), f"Set {shown}.")
    if not spikes.deviations > 0:
        yield must("train.spikes.deviations", "more than 0", spikes.deviations, "Set 10.")
    if spikes.policy is SpikePolicy.rewind and not (
        config.checkpoint.enabled and config.checkpoint.every_steps
    ):
        yield must(
            "train.spikes.policy",
            "another than rewind where no checkpoints are saved during the run",
            "rewind",
            "Set checkpoint.every_steps=100, or train.spikes.policy=skip.",
        )
    if train.verify_every and not config.deterministic:
        yield must(
            "train.verify_every",
            "0 without deterministic=true",
            train.verify_every,
            "Set deterministic=true: else kernels add up in any order, and differ rightly.",
        )
