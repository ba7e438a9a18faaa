"""How long a planned run takes, and what it costs: what `palimpsest plan` says of time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

from trainer.checkpoint.space import BYTES_PER_PARAMETER
from trainer.config.schema import RunConfig
from trainer.forecast.card import Cards
from trainer.forecast.fastest import AS_FAST, fastest
from trainer.forecast.memory import RunShape, Weights, forecast
from trainer.forecast.printed import Gpu
from trainer.forecast.shapes import DecoderShape
from trainer.forecast.step_time import DEVICES, Device, StepTime, find_device, step_time, why_not_timed

NETWORK_SHARE = 0.8
"""Of a network's rate that reductions get."""
COPY_BYTES_S = 38.9e9
"""What a GPU's part of a save is copied with into pinned memory (benchmarks/results/saves_8b_2xH200.json)."""
NODES = (1, 2, 4, 8, 16, 32, 64)
NOTE = (
    "Times are fitted to measured steps of 8B and 70B shapes on one and two H100 and H200, within 15 %. Other GPUs, "
    "links between nodes and more than two GPUs are worked out from datasheets and were not measured. Each document is "
    "taken to fill its pack; shorter ones take less. Loading, evaluation, saves and compiling come on top."
)


@dataclasses.dataclass(frozen=True, slots=True)
class Timing:
    """The time of a run on a kind of GPU."""

    device: Device
    own: StepTime
    by_nodes: dict[int, StepTime]
    """With as many ranks a node, micro-batches and micro-steps as the run has, whatever the number of nodes."""


def timing_of(
    config: RunConfig, shape: DecoderShape, run: RunShape, weights: Weights, cards: Cards
) -> Timing | str:
    """Return the times of a fitted run, or why they are not forecast."""
    name = config.plan.gpu or cards.name
    listed = ", ".join(one.name for one in DEVICES)
    if name is None:
        return f"Time: not forecast, since no GPU is known: set plan.gpu ({listed})."
    device, why = find_device(name), why_not_timed(shape, run)
    if device is None:
        return f"Time: not forecast for {name}: plan.gpu knows {listed}."
    if why is not None:
        return f"Time: not forecast for {why}: too few of such steps were measured."

    def on(num_nodes: int) -> StepTime:
        return run_time(config, shape, on_nodes(config, run, num_nodes), weights, device, num_nodes)

    return Timing(device, on(config.cluster.num_nodes), {number: on(number) for number in NODES})


def run_time(
    config: RunConfig,
    shape: DecoderShape,
    run: RunShape,
    weights: Weights,
    device: Device,
    num_nodes: int | None = None,
) -> StepTime:
    """Return the time of a step of a run on so many nodes, or on its own, each document as long as its pack."""
    is_spread = (config.cluster.num_nodes if num_nodes is None else num_nodes) > 1
    network = NETWORK_SHARE * config.plan.network_gbit * 1e9 / 8 if is_spread else None
    return step_time(shape, run, weights, device, run.seq_len, network)


def on_nodes(config: RunConfig, run: RunShape, num_nodes: int) -> RunShape:
    """Return a run on so many nodes, with as many ranks on each and as many tokens of a rank in a step as it has."""
    ranks = max(run.world_size // config.cluster.num_nodes, 1)
    return dataclasses.replace(run, world_size=ranks * num_nodes)


def spare_on_nodes(
    config: RunConfig, shape: DecoderShape, run: RunShape, weights: Weights, gpu: Gpu
) -> dict[int, float]:
    """Return what a GPU has to spare on every number of nodes, in GiB; negative where the run does not fit."""
    return {
        number: gpu.spare_gib(forecast(shape, on_nodes(config, run, number), weights)) for number in NODES
    }


def time_sentences(config: RunConfig, timing: Timing) -> Iterator[str]:
    """Yield what a step takes and of what, and what the run takes and costs where its length is known."""
    own = timing.own
    parts = {
        "products of matrices": own.matmuls,
        "attention": own.attention,
        "other memory traffic": own.memory,
        "links between GPUs": own.links,
        "optimizer": own.optimizer,
    }
    shown = ", ".join(f"{seconds:.3f} s {what}" for what, seconds in parts.items())
    yield (
        f"A step on {own.num_ranks} x {timing.device.name} takes about {own.seconds:.2f} s: {shown}. "
        f"{own.tokens_per_s_per_gpu:,.0f} tok/s a GPU."
    )
    num_steps = num_steps_of(config)
    if num_steps is None:
        return
    hours = num_steps * own.seconds / 3600
    gpu_hours, price = hours * own.num_ranks, config.plan.price_per_gpu_hour
    cost = "" if price is None else f", {gpu_hours * price:,.2f} at {price:g} each"
    yield f"{num_steps:,} steps: {hours:,.2f} hours, {gpu_hours:,.2f} GPU-hours{cost}."


def fastest_sentence(
    config: RunConfig, shape: DecoderShape, run: RunShape, weights: Weights, timing: Timing, gpu: Gpu
) -> str:
    """Return what is forecast to be fastest on the same GPUs, with the room that a forecast of memory may be off by."""
    found = fastest(
        shape,
        run,
        weights,
        gpu.free_gib - gpu.margin_gib,
        lambda changed: run_time(config, shape, changed, weights, timing.device).seconds,
    )
    if found is None:
        return "No ZeRO stage, recomputation or micro-batch fits these GPUs with room to spare."
    times = timing.own.seconds / found.seconds
    if not found.overrides or times < AS_FAST:
        return "No other ZeRO stage, recomputation or micro-batch is forecast to be faster on these GPUs."
    return (
        f"Fastest on these GPUs by this forecast: {' '.join(found.overrides)}: {found.seconds:.2f} s a step, "
        f"{times:.2f} times as fast, {gpu.spare_gib(found.peak):.1f} GiB to spare."
    )


def save_sentence(config: RunConfig, run: RunShape, weights: Weights) -> str:
    """Return what a checkpoint costs: what steps wait for, and what the disk takes."""
    if not config.checkpoint.enabled:
        return "Nothing is saved: checkpoint.enabled=false."
    size = weights.num_trainable * BYTES_PER_PARAMETER
    writers = run.world_size if run.stage else 1
    disk_s = size / (config.cluster.write_gb_per_s * 1e9 * (config.cluster.num_nodes if run.stage else 1))
    disk = f"{disk_s:.3g} s at {config.cluster.write_gb_per_s:g} GB/s a node (cluster.write_gb_per_s)"
    if not config.checkpoint.background:
        return f"A save is {size / 1e9:.3g} GB, and steps wait until it is on disk: {disk}."
    return (
        f"A save is {size / 1e9:.3g} GB: steps wait about {size / writers / COPY_BYTES_S:.2g} s for its copy, and the "
        f"disk takes {disk} beside them."
    )


def num_steps_of(config: RunConfig) -> int | None:
    """Return the steps of the run where the configuration alone says them: not for epochs of data."""
    train = config.train
    if train.max_steps is not None:
        return train.max_steps
    return None if train.max_tokens is None else math.ceil(train.max_tokens / train.global_batch_tokens)
