"""The settings of a run whose step is forecast to be the shortest on the same GPUs. Pure: tries them all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from trainer.forecast.memory import Peak, RunShape, Weights, forecast
from trainer.forecast.shapes import DecoderShape

STAGES = (1, 2, 3)
"""What is chosen from, cheapest first: gathering a frozen base in every layer costs LoRA a third of its speed (measured
on two H200s), more than recomputing all layers does. Stage 0 saves nothing over 1 in speed."""
AS_FAST = 1.01
"""Times of two steps that a forecast does not tell apart."""
MOST_PACKS = 32
"""Of a micro-batch that is tried."""


@dataclass(frozen=True, slots=True)
class Fastest:
    """Overrides that make a step shorter, and what is forecast with them."""

    overrides: tuple[str, ...]
    seconds: float
    peak: Peak


def fastest(
    shape: DecoderShape,
    run: RunShape,
    weights: Weights,
    limit_gib: float,
    seconds_of: Callable[[RunShape], float],
) -> Fastest | None:
    """Return the fastest stage, number of recomputed layers and micro-batch that fit; None where nothing does.

    The tokens of an optimizer step stay the same. Of those that are as fast the one with the fewest changes; without
    overrides it is the run itself.
    """
    found = []
    for changed, overrides in _candidates(shape, run):
        peak = forecast(shape, changed, weights)
        if not changed.is_refused and peak.gib <= limit_gib:
            found.append(Fastest(overrides, seconds_of(changed), peak))
    return min(found, key=lambda one: (one.seconds, len(one.overrides)), default=None)


def _candidates(shape: DecoderShape, run: RunShape) -> Iterator[tuple[RunShape, tuple[str, ...]]]:
    quarters = {0, *(shape.num_layers * part // 4 for part in (1, 2, 3)), -1, run.checkpoint_layers}
    packs = run.micro_batch_size * run.num_micro_steps
    for stage in sorted({*STAGES, run.stage}):
        for count in sorted(quarters, key=lambda count: (count < 0, count)):
            for micro in (size for size in range(1, min(packs, MOST_PACKS) + 1) if packs % size == 0):
                words = {
                    f"zero.stage={stage}": stage != run.stage,
                    f"model.checkpoint_layers={count}": count != run.checkpoint_layers,
                    f"train.micro_batch_size={micro}": micro != run.micro_batch_size,
                }
                changed = replace(
                    run,
                    stage=stage,
                    checkpoint_layers=count,
                    micro_batch_size=micro,
                    num_micro_steps=packs // micro,
                )
                yield changed, tuple(word for word, is_changed in words.items() if is_changed)
