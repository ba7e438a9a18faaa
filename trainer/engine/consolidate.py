"""Read whole parameters out of a checkpoint, one at a time, without ranks, GPUs or DeepSpeed.

Files are memory-mapped, so the memory needed is that of one parameter.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from trainer.checkpoint.shards import Shards, open_shards
from trainer.engine.spread_layout import SPREAD, Spread
from trainer.model.choice_bias import HELD


def stream_parameters(checkpoint: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, full tensor) of a checkpoint in the model's own names; shared tensors once.

    Trained tensors come as the fp32 master weights.

    Raises:
        CheckpointError: The shards do not hold all of one.
    """
    shards = open_shards(checkpoint)
    if SPREAD in shards.facts:
        yield from _spread_parameters(shards, Spread.of(shards.facts[SPREAD]))
        return
    for name in shards.shapes:
        yield name, shards.whole(name)
    for name in shards.buffers:
        if name != HELD:
            yield name, shards.buffer(name)


def _spread_parameters(shards: Shards, spread: Spread) -> Iterator[tuple[str, Tensor]]:
    """Yield the same of a model whose experts were spread over ranks, under the base's names."""
    for name in shards.shapes:
        if not spread.is_expert(name):
            yield spread.base_name(name), shards.whole(name)
    for layer in spread.layers:
        for name, make in layer.tensors(shards.whole).items():
            yield name, make().contiguous()
    for name in shards.buffers:
        if name != HELD:
            yield spread.base_name(name), shards.buffer(name)
