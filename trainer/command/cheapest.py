"""Which ZeRO stage and how many recomputed layers a run gets that leaves them open. Pure arithmetic."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from trainer.command.counted import as_installed, run_shape, tuned_weights
from trainer.command.plan_time import run_time
from trainer.config.check import find_problems
from trainer.config.schema import RunConfig
from trainer.config.snapshot import with_fitted
from trainer.forecast.card import gib_text
from trainer.forecast.fastest import AS_FAST, STAGES
from trainer.forecast.memory import ERROR_FRAC, forecast
from trainer.forecast.shapes import DecoderShape
from trainer.forecast.step_time import find_device, why_not_timed


@dataclasses.dataclass(frozen=True, slots=True)
class Pair:
    """A stage with a number of recomputed layers, and what is forecast of them."""

    config: RunConfig
    spare_gib: float
    """What is left of a GPU beside the reserve; negative where it does not fit."""
    seconds: float | None
    """Of a step; None where it is not forecast."""


def chosen_pair(config: RunConfig, pairs: Sequence[Pair], gpu_gib: float) -> tuple[RunConfig, str | None]:
    """Return the pair that a run gets, and why; the reason is None where every stage is refused.

    Of those that leave what a forecast of memory may be off by: the one with the shortest step, the cheapest of those
    that are as fast; the cheapest where no time is forecast. Where none leaves it: the one that leaves most.
    """
    if not pairs:
        return config, None
    margin_gib = ERROR_FRAC * gpu_gib
    fitting = [pair for pair in pairs if pair.spare_gib >= margin_gib]
    times = [pair.seconds for pair in fitting if pair.seconds is not None]
    if not fitting:
        most = max(pair.spare_gib for pair in pairs)
        found = [pair for pair in pairs if pair.spare_gib == most][-1]
    elif len(times) < len(fitting):
        found = fitting[0]
    else:
        found = next(pair for pair in fitting if (pair.seconds or 0.0) <= AS_FAST * min(times))
    said = (
        f"a peak of {gpu_gib - config.plan.reserve_gib - found.spare_gib:.1f} GiB is forecast of {gib_text(gpu_gib)}, "
        f"with {config.plan.reserve_gib:g} kept in reserve"
    )
    if found.spare_gib < 0:
        return found.config, f"and even so {said}. See palimpsest plan."
    if not fitting:
        off = f"{100 * ERROR_FRAC:g} % that a forecast may be off by"
        return found.config, f"{said} and only {found.spare_gib:.1f} to spare, less than the {off}."
    if len(times) > 1 and found.seconds is not None:
        said += f"; no step of what fits is forecast to be shorter than its {found.seconds:.2f} s"
    return found.config, f"{said}."


def forecast_pairs(
    config: RunConfig,
    shape: DecoderShape,
    num_ranks: int,
    gpu_gib: float,
    is_here: bool,
    gpu_name: str | None,
    layer_counts: Sequence[int],
) -> list[Pair]:
    """Return what may be chosen, cheapest first; where no time is forecast, up to the first that leaves enough.

    Args:
        is_here: `auto` means what is installed here, not flash attention and Liger.
        gpu_name: Kind of GPU, where one is known.
        layer_counts: Recomputed layers that there may be, cheapest first.
    """
    weights, problems = tuned_weights(config, shape), set(find_problems(config, num_ranks))
    device = None if gpu_name is None else find_device(gpu_name)
    found, refused = list[Pair](), set[int]()
    for stage, layers in cheapest_first(config, layer_counts):
        candidate = with_fitted(config, stage, layers, config.zero.dtype)
        if stage in refused or set(find_problems(candidate, num_ranks)) - problems:
            refused.add(stage)  # by the method
            continue
        run = run_shape(candidate, num_ranks)
        run = as_installed(config.model, run) if is_here else run
        spare_gib = gpu_gib - config.plan.reserve_gib - forecast(shape, run, weights).gib
        seconds = None
        if device is not None and why_not_timed(shape, run) is None:
            seconds = run_time(config, shape, run, weights, device).seconds
        found.append(Pair(candidate, spare_gib, seconds))
        if seconds is None and spare_gib >= ERROR_FRAC * gpu_gib:
            break
    return found


def cheapest_first(
    config: RunConfig, layer_counts: Sequence[int], stages: Sequence[int] = STAGES
) -> list[tuple[int, int]]:
    """Return what may be chosen, cheapest first: stages that shard no parameters, then fewer recomputed layers."""
    stages = stages if config.zero.stage is None else (config.zero.stage,)
    asked = config.model.checkpoint_layers
    counts = layer_counts if asked is None else (asked,)
    found = [(stage == 3, number, stage, count) for stage in stages for number, count in enumerate(counts)]
    return [(stage, count) for _, _, stage, count in sorted(found)]
