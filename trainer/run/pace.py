"""How long each rank computes in a step, without its waiting for others, and which one is slow.

In a step all ranks take as long as the slowest: the time is made to differ by leaving collectives out. Below ZeRO-3 the
forward pass has none; where it has some, layers are timed one by one, after their weights were gathered.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from trainer.dist.mesh import Mesh

NUM_LAYERS = 32
"""Layers that are timed where the forward pass has collectives."""
IN_A_ROW = 2
"""Spans of steps after which a rank is slow, or no longer: one may be a hiccup."""


@dataclass(frozen=True, slots=True)
class SlowRank:
    """A rank that has become slow, or is so no longer."""

    rank: int
    is_slow: bool
    ratio: float
    """Its time as a multiple of the median of all."""
    step_s: float
    """What it computes in a step, in seconds; the wait for its data is part of it."""
    node: str


class Stragglers:
    """Tells the ranks that are slow from the times of all. Pure."""

    def __init__(self, limit: float, nodes: Sequence[str]) -> None:
        """Take the multiple of the median beyond which a rank is slow, and the node of each rank."""
        self._limit = limit
        self._nodes = nodes
        self._num_spans = [0] * len(nodes)
        """In a row, in which the rank was not what it is held for."""
        self._slow: set[int] = set()
        self.slowest: dict[str, float] = {}
        """The slowest rank of the last span and its multiple of the median, as they are logged."""

    def look(self, seconds: Sequence[float]) -> list[SlowRank]:
        """Take the seconds of a step of every rank; return what has changed."""
        # Of two ranks the faster one: the middle between them would never be far from either.
        median = statistics.median_low(seconds)
        if not median > 0:
            return []
        ratios = [one / median for one in seconds]
        slowest = max(range(len(ratios)), key=lambda rank: ratios[rank])
        self.slowest = {"slowest_rank": float(slowest), "slowest_ratio": ratios[slowest]}
        changes = []
        for rank, ratio in enumerate(ratios):
            is_slow = ratio > self._limit
            self._num_spans[rank] = self._num_spans[rank] + 1 if is_slow != (rank in self._slow) else 0
            if self._num_spans[rank] == IN_A_ROW:
                self._num_spans[rank] = 0
                self._slow ^= {rank}
                changes.append(SlowRank(rank, is_slow, ratio, seconds[rank], self._nodes[rank]))
        return changes


class Pace:
    """Times what this rank computes and compares it with the others."""

    def __init__(
        self, mesh: Mesh, module: nn.Module, by_layers: bool, every_steps: int, stragglers: Stragglers
    ) -> None:
        """Take the model after the engine was built.

        Args:
            by_layers: The forward pass has collectives.
            every_steps: Steps after which all ranks tell their times.
        """
        self._mesh = mesh
        self._every_steps = every_steps
        self.stragglers = stragglers
        self._on_gpu = mesh.device.type == "cuda"
        self._marks: list[tuple[Any, Any]] = []
        self._is_on = False
        self._begun: list[Any] = []
        self._sum_s = 0.0
        self._num_steps = 0
        self._by_layers = by_layers
        if by_layers:
            for layer in _timed_layers(module):
                layer.register_forward_pre_hook(self._begin_layer)
                layer.register_forward_hook(self._end_layer, prepend=True)

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Time the forward pass of a micro-batch."""
        self._begun.clear()
        self._is_on = self._by_layers
        begun = None if self._by_layers else self._now()
        try:
            yield
        finally:
            self._is_on = False
        if begun is not None:
            self._marks.append((begun, self._now()))

    def step(self, data_wait_s: float) -> list[SlowRank]:
        """Count a step that is done; return which ranks became slow, or no longer are. Collective: every rank."""
        self._sum_s += data_wait_s + sum(_seconds(begun, ended) for begun, ended in self._marks)
        self._marks.clear()
        self._num_steps += 1
        if self._num_steps < self._every_steps:
            return []
        mine = [0.0] * self._mesh.num_ranks
        mine[self._mesh.rank] = self._sum_s / self._num_steps
        self._sum_s, self._num_steps = 0.0, 0
        return self.stragglers.look(self._mesh.sum(mine))

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call, unused-ignore]
        event.record()
        return event

    def _begin_layer(self, module: nn.Module, inputs: Any) -> None:
        if self._is_on:
            self._begun.append(self._now())

    def _end_layer(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        if self._is_on and self._begun:
            self._marks.append((self._begun.pop(), self._now()))


def _seconds(begun: Any, ended: Any) -> float:
    """Return the time between two marks; on a GPU of what was computed, which is done when a step is."""
    return float(begun.elapsed_time(ended)) / 1000 if isinstance(begun, torch.cuda.Event) else ended - begun


def _timed_layers(module: nn.Module) -> list[nn.Module]:
    """Return layers that hold a matrix and no other layer, evenly from all over the model."""
    layers = [
        layer
        for layer in module.modules()
        if next(layer.children(), None) is None
        and any(len(getattr(p, "ds_shape", p.shape)) > 1 for p in layer.parameters(recurse=False))
    ]
    stride = max(len(layers) / NUM_LAYERS, 1.0)
    return [layers[int(index * stride)] for index in range(min(len(layers), NUM_LAYERS))]
