"""What makes a run fit that does not fit its GPUs as it is: ways with figures, those of the fewest GPUs first."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from trainer.command.counted import tuned_weights
from trainer.config.check import find_problems
from trainer.config.cluster import Scheduler
from trainer.config.optim import Offload, ZeroConfig
from trainer.config.rates import USUAL, is_others
from trainer.config.schema import RunConfig, RunKind
from trainer.config.tune import Quantise, TuneConfig, TuneMethod
from trainer.errors import TrainerError
from trainer.forecast.advice import GPUS_OF_A_NODE, NODE_FACTORS, Advice, smallest_change
from trainer.forecast.memory import GIB, RunShape, Weights
from trainer.forecast.printed import Way
from trainer.forecast.shapes import DecoderShape

STATE_BYTES = 16
"""Bytes of a trained parameter in host memory: optimizer state, fp32 weights and gradients."""


@dataclass(frozen=True, slots=True)
class _Method:
    """One way, of those that are tried in this order."""

    words: tuple[str, ...]
    weights: Weights
    run: RunShape
    offloads: tuple[bool, ...]
    factors: tuple[int, ...]


def ways_to_fit(config: RunConfig, shape: DecoderShape, run: RunShape, limit_gib: float) -> list[Way]:
    """Return the ways whose peak is at most the limit: LoRA, QLoRA, offload and more GPUs, those of fewest GPUs first.

    Args:
        config: Checked and fitted; the run does not fit.
        run: What of it decides memory.
        limit_gib: What tensors of a GPU can have.
    """
    found: list[tuple[int, Way]] = []
    for method in _methods(config, shape, run):
        advice = smallest_change(
            shape,
            method.run,
            method.weights,
            limit_gib,
            config.cluster.num_nodes,
            method.factors,
            method.offloads,
            most_of_node(config, run.world_size),
        )
        if advice is not None:
            note = _note(method, shape, advice, config.cluster.num_nodes)
            found.append((advice.num_gpus, Way((*method.words, *advice.overrides), advice.peak, note)))
    return [way for _, way in sorted(found, key=lambda one: one[0])]


def most_of_node(config: RunConfig, world_size: int) -> int:
    """Return how many GPUs a node may get: as it is, where a scheduler or a hostfile says what nodes there are."""
    cluster = config.cluster
    is_open = cluster.scheduler is Scheduler.none and cluster.hostfile is None
    return GPUS_OF_A_NODE if is_open else world_size // cluster.num_nodes


def _methods(config: RunConfig, shape: DecoderShape, run: RunShape) -> Iterator[_Method]:
    tune = config.tune
    if tune.method is TuneMethod.full:
        adapted = dataclasses.replace(tune, method=TuneMethod.lora)
        yield from _tuned(config, shape, run, "lora", adapted)
    if tune.method in (TuneMethod.full, TuneMethod.lora) and tune.quantise is Quantise.none:
        packed = dataclasses.replace(tune, method=TuneMethod.lora, quantise=Quantise.nf4)
        yield from _tuned(config, shape, run, "qlora", packed)
    own, zero = tuned_weights(config, shape), config.zero
    offloaded = dataclasses.replace(zero, offload_optimizer=Offload.cpu)
    if not run.offload_optimizer and _is_allowed(config, run, zero=offloaded):
        yield _Method((), own, run, (True,), (1,))
    offloaded = dataclasses.replace(offloaded, stage=3, offload_param=Offload.cpu)
    if not run.offload_param and _is_allowed(config, run, zero=offloaded):
        to_host = dataclasses.replace(run, stage=3, offload_optimizer=True, offload_param=True)
        yield _Method(("zero=zero3_offload",), own, to_host, (True,), (1,))
    yield _Method((), own, run, (run.offload_optimizer,), NODE_FACTORS[1:])


def _tuned(
    config: RunConfig, shape: DecoderShape, run: RunShape, option: str, tune: TuneConfig
) -> Iterator[_Method]:
    """Yield a method that trains less, unless a rule or the model is against it."""
    changed = dataclasses.replace(config, tune=tune)
    try:
        weights = tuned_weights(changed, shape)
    except TrainerError:
        return
    if _is_allowed(config, run, tune=tune):
        words: tuple[str, ...] = (f"tune={option}",)
        if config.kind in (RunKind.full_finetune, RunKind.lora):
            words = (f"recipe={option}",)
        elif is_others(changed):
            words = (*words, f"optim.lr={USUAL[tune.method]}")
        yield _Method(words, weights, run, (run.offload_optimizer,), NODE_FACTORS)


def _is_allowed(config: RunConfig, run: RunShape, **sections: ZeroConfig | TuneConfig) -> bool:
    """Say whether a configuration with other sections breaks no rule that it does not break as it is."""
    changed: RunConfig = dataclasses.replace(config, **sections)  # type: ignore[arg-type]
    return not set(find_problems(changed, run.world_size)) - set(find_problems(config, run.world_size))


def _note(method: _Method, shape: DecoderShape, advice: Advice, num_nodes: int) -> str:
    """Return what a way costs or leaves."""
    weights = method.weights
    count: float = weights.num_trainable
    if method.words and method.words[0].startswith(("tune=", "recipe=")):
        note = f"trains {100 * count / (weights.num_frozen + count):.2g} % of the parameters"
    elif True in method.offloads:
        size = STATE_BYTES * count
        if method.run.offload_param:
            size += weights.frozen_bytes + method.run.element_bytes * count
        note = f"slower, with {size / num_nodes / GIB:,.0f} GiB of host memory on a node"
    else:
        note = ""
    gpus = f"{advice.num_gpus} GPUs" if advice.num_gpus != method.run.world_size else ""
    return ", ".join(part for part in (gpus, note) if part)
