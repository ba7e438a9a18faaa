"""The smallest change of a run that makes it fit. Pure: tries every combination in order of cost."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from trainer.forecast.memory import Peak, RunShape, Weights, forecast
from trainer.forecast.shapes import DecoderShape

NODE_FACTORS = (1, 2, 4, 8, 16, 32, 64)
GPUS_OF_A_NODE = 8
"""A node is filled up to so many before another one is advised."""


@dataclass(frozen=True, slots=True)
class Advice:
    """Overrides that make a run fit, and its peak with them."""

    overrides: tuple[str, ...]
    peak: Peak
    num_gpus: int


def smallest_change(
    shape: DecoderShape,
    run: RunShape,
    weights: Weights,
    limit_gib: float,
    num_nodes: int,
    factors: Sequence[int] = NODE_FACTORS,
    offloads: Sequence[bool] = (False, True),
    most_of_node: int = GPUS_OF_A_NODE,
) -> Advice | None:
    """Return the cheapest change whose peak is at most the limit, or None where none is.

    Order of cost: what the same GPUs can do (fewest changes, then fewest layers recomputed, then the highest
    micro-batch, then the lowest stage), more GPUs, optimizer state in host memory. The tokens of an optimizer step
    stay the same.

    Args:
        factors: How many times the GPUs there may be.
        offloads: Whether the optimizer state may be in host memory.
        most_of_node: GPUs up to which one node is filled before there are more.
    """
    more = {factor: _more_gpus(run.world_size, num_nodes, factor, most_of_node) for factor in factors}
    found = _candidates(shape, run, more, offloads)
    candidates = sorted(found, key=lambda candidate: candidate[0])
    for _, changed, overrides in candidates:
        peak = forecast(shape, changed, weights)
        if not changed.is_refused and peak.gib <= limit_gib:
            return Advice(overrides, peak, changed.world_size)
    return None


_Candidate = tuple[tuple[int, ...], RunShape, tuple[str, ...]]


def _candidates(
    shape: DecoderShape, run: RunShape, more: Mapping[int, dict[str, bool]], offloads: Sequence[bool]
) -> Iterator[_Candidate]:
    choices = itertools.product(
        _stages(run),
        _checkpoint_counts(shape.num_layers, run.checkpoint_layers),
        _halves(run.micro_batch_size),
        more,
        offloads if not run.offload_optimizer else (True,),
    )
    packs = run.world_size // run.sequence_parallel * run.micro_batch_size * run.num_micro_steps
    for stage, count, micro, factor, offload in choices:
        world_size = run.world_size * factor
        places = world_size // run.sequence_parallel * micro
        if packs % places or (offload and stage == 0):
            continue
        changed = replace(
            run,
            stage=stage,
            checkpoint_layers=count,
            micro_batch_size=micro,
            world_size=world_size,
            num_micro_steps=packs // places,
            offload_optimizer=offload,
        )
        words = {
            f"zero.stage={stage}": stage != run.stage,
            f"model.checkpoint_layers={count}": count != run.checkpoint_layers,
            f"train.micro_batch_size={micro}": micro != run.micro_batch_size,
            **more[factor],
            "zero.offload_optimizer=cpu": offload != run.offload_optimizer,
        }
        overrides = tuple(word for word, is_changed in words.items() if is_changed)
        recomputed = shape.num_layers if count < 0 else count
        is_offloaded = int(offload != run.offload_optimizer)
        cost = (is_offloaded, factor, len(overrides), recomputed, -micro, stage)
        yield cost, changed, overrides


def _stages(run: RunShape) -> Sequence[int]:
    """Return every stage that the rest of the run allows: a lower one may need less, which has fewer buffers."""
    if run.offload_param:
        return (3,)
    return range(1 if run.asks_base and run.stage else 0, 4)


def _more_gpus(world_size: int, num_nodes: int, factor: int, most_of_node: int) -> dict[str, bool]:
    """Return the words for more GPUs, and whether each changes anything: one node is filled before there are more."""
    per_node = world_size // num_nodes
    if num_nodes > 1 or per_node >= most_of_node:
        return {f"cluster.num_nodes={num_nodes * factor}": factor != 1}
    wanted = world_size * factor
    filled = max(count for count in range(per_node, most_of_node + 1) if wanted % count == 0)
    return {
        f"cluster.ranks_per_node={filled}": filled != per_node,
        f"cluster.num_nodes={wanted // filled}": wanted != filled,
    }


def _checkpoint_counts(num_layers: int, asked: int) -> list[int]:
    """Return the counts from the one asked for to all layers, in quarters."""
    if asked < 0 or asked >= num_layers:
        return [asked]
    quarters = [num_layers * quarter // 4 for quarter in (1, 2, 3)]
    return [asked, *(count for count in quarters if count > asked), -1]


def _halves(count: int) -> list[int]:
    """Return a count and its halves down to the last whole one."""
    found = [count]
    while found[-1] % 2 == 0:
        found.append(found[-1] // 2)
    return found
