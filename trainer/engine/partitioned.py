"""ZeRO-2 of whole models: gradients go to the rank that owns them while the backward pass runs.

DeepSpeed's stage 2 adds up every gradient on every rank and keeps a part: twice the bytes, on as many of the GPU's
processors as the library likes, which the products then lack. Its step converts, clips and updates everything before
the first weight travels. Here parameters are in buckets, each cut into as many parts as there are ranks; a bucket whose
gradients are there is reduced and scattered on a stream of its own, and a bucket that is updated is gathered while the
next is updated. The layout is that of DeepSpeed's stage 1, with more groups: float32 masters and Adam's state in flat
partitions.

Source: deepspeed 0.19.8, runtime/zero/stage_1_and_2.py; torch/csrc/distributed/c10d/reducer.cpp for the order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as torch_dist
from torch import Tensor, nn

from trainer.engine.flat import FlatZeroOptimizer, take_over
from trainer.engine.lane import Lane, gather_parts, scatter_sum
from trainer.engine.update import take_step

MOST_TRAVELLING = 2
"""Buckets whose gradients may be on their way at once; a backward pass that is faster waits."""


def is_for(ds_config: dict[str, Any]) -> bool:
    """Tell whether the stage is one that partitions gradients, and on the device."""
    zero = ds_config["zero_optimization"]
    return zero["stage"] == 2 and not zero.keys() & {"offload_optimizer", "zenflow"}


@dataclass(frozen=True, slots=True)
class Exchange:
    """How gradients are kept and travel."""

    adds_up: bool
    """A step has several micro-batches: their gradients add up in float32."""
    overlaps: bool
    """Ranks exchange beside the computation."""


def ask_for_buckets(optimizer: torch.optim.Optimizer, ds_config: dict[str, Any]) -> Exchange:
    """Let DeepSpeed keep buckets as at stage 1, without hooks of its own; `partition_gradients` must follow."""
    zero = ds_config["zero_optimization"]
    way = Exchange(ds_config["gradient_accumulation_steps"] > 1, zero["overlap_comm"])
    ds_config.pop("data_types", None)  # would be another class
    zero |= {"stage": 1, "overlap_comm": False}
    cut_into_buckets(optimizer, zero["reduce_bucket_size"])
    return way


def cut_into_buckets(optimizer: torch.optim.Optimizer, most_elements: int) -> None:
    """Cut the groups of an optimizer that has taken no step into groups of so many elements, in the same order.

    A parameter is never cut.
    """
    cut = []
    for group in optimizer.param_groups:
        size = 0
        bucket: list[nn.Parameter] = []
        for parameter in group["params"]:
            if bucket and size + parameter.numel() > most_elements:
                cut.append(group | {"params": bucket})
                size, bucket = 0, []
            bucket.append(parameter)
            size += parameter.numel()
        cut.append(group | {"params": bucket})
    optimizer.param_groups[:] = cut


def partition_gradients(optimizer: Any, model: nn.Module, way: Exchange) -> None:
    """Turn DeepSpeed's optimizer of stage 1 into one that partitions gradients, in place, before its first step.

    Args:
        model: Tells the order in which gradients come: last parameters first.
    """
    groups = take_over(optimizer, PartitionedZeroOptimizer)
    place = {id(parameter): index for index, parameter in enumerate(model.parameters())}
    wire = optimizer.communication_data_type
    kept = torch.float32 if way.adds_up else wire
    optimizer.buckets = [
        Bucket(parameters, offsets, flat.numel(), wire, kept) for flat, parameters, offsets in groups
    ]
    optimizer.reducer = Reducer(optimizer.buckets, place, optimizer.dp_process_group, way.overlaps)
    optimizer.has_finished_pass = False


class Bucket:
    """Gradients of one group of parameters: whole while they come in, then this rank's part of them."""

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        offsets: Sequence[int],
        num_elements: int,
        wire: torch.dtype,
        kept: torch.dtype,
    ) -> None:
        """Take the parameters, where each begins in the flat group and how long that is with its padding.

        Args:
            wire: What is added up between ranks.
            kept: What is added up over micro-batches.
        """
        self.parameters = parameters
        self.num_elements = num_elements
        self.wire = wire
        self.own: Tensor | None = None
        """This rank's part of the sum over ranks; none before the first backward pass of a step."""
        self._kept = kept
        self._offsets = offsets
        self._whole: Tensor | None = None
        self.begin()

    @property
    def is_ready(self) -> bool:
        """Whether every gradient is there."""
        return not self._waiting

    def take(self, index: int) -> None:
        """Move the gradient of a parameter in here."""
        parameter = self.parameters[index]
        grad, parameter.grad = parameter.grad, None
        assert grad is not None
        if index not in self._waiting:
            raise RuntimeError(
                "A parameter got a second gradient in one backward pass, which may be on its way already."
            )
        if self._whole is None:
            self._whole = torch.empty(self.num_elements, dtype=self.wire, device=parameter.device)
        self._place(index).copy_(grad)
        self._waiting.discard(index)

    def whole(self) -> Tensor:
        """Return all gradients, flat, zeros for those that did not come, and let go of them."""
        if self._whole is None:
            self._whole = torch.zeros(self.num_elements, dtype=self.wire, device=self.parameters[0].device)
        else:
            end = 0
            for index, (parameter, offset) in enumerate(zip(self.parameters, self._offsets, strict=True)):
                self._whole[end:offset].zero_()
                end = offset + parameter.numel()
                if index in self._waiting:
                    self._place(index).zero_()
            self._whole[end:].zero_()
        whole, self._whole = self._whole, None
        return whole

    def begin(self) -> None:
        """Wait for the gradients of another backward pass."""
        self._waiting = set(range(len(self.parameters)))

    def room(self, num_ranks: int) -> Tensor:
        """Return where this rank's part of a sum arrives."""
        return torch.empty(self.num_elements // num_ranks, dtype=self.wire, device=self.parameters[0].device)

    def add(self, part: Tensor) -> None:
        """Take this rank's part of the sum over ranks of a micro-batch."""
        if self.own is None:
            self.own = part.to(self._kept)
        else:
            self.own.add_(part)

    def _place(self, index: int) -> Tensor:
        assert self._whole is not None
        parameter = self.parameters[index]
        return self._whole.narrow(0, self._offsets[index], parameter.numel()).view(parameter.shape)


class Reducer:
    """Sends buckets off as they fill, in the same order on every rank."""

    def __init__(self, buckets: Sequence[Bucket], place: dict[int, int], group: Any, overlaps: bool) -> None:
        """Hear of every gradient.

        Args:
            place: Of parameters in the model, by id.
            overlaps: Exchange beside the computation.
        """
        self._group = group
        self._num_ranks = torch_dist.get_world_size(group=group)
        self._order = sorted(
            buckets, key=lambda bucket: -min(place[id(parameter)] for parameter in bucket.parameters)
        )
        self._next = 0
        self.lane = Lane(buckets[0].parameters[0].device, overlaps)
        self._travelling: list[tuple[Any, Tensor, Tensor]] = []
        for bucket in buckets:
            for index, parameter in enumerate(bucket.parameters):
                hear: Any = parameter.register_post_accumulate_grad_hook
                hear(self._taker(bucket, index))

    def _taker(self, bucket: Bucket, index: int) -> Any:
        def take(_parameter: Tensor) -> None:
            bucket.take(index)
            while self._next < len(self._order) and self._order[self._next].is_ready:
                self._send()

        return take

    @torch.no_grad()
    def finish(self) -> None:
        """Send what is left of a backward pass, and let the next kernels wait for all. Collective."""
        while self._next < len(self._order):
            self._send()
        self._next = 0
        for bucket in self._order:
            bucket.begin()
        self.lane.join()
        self._travelling.clear()

    def _send(self) -> None:
        bucket = self._order[self._next]
        self._next += 1
        whole = bucket.whole()
        if self._num_ranks == 1:
            bucket.add(whole)
            return
        part = bucket.room(self._num_ranks)
        with self.lane.after_all():
            scatter_sum(part, whole, self._group)
            bucket.add(part)
        # Freed once the other stream is done with them: this one's memory is given out again without asking it.
        self._travelling.append((self.lane.mark(), whole, part))
        while len(self._travelling) > MOST_TRAVELLING:
            self.lane.wait(self._travelling.pop(0)[0])


class PartitionedZeroOptimizer(FlatZeroOptimizer):
    """DeepSpeed's stage 1 that partitions gradients; made by `partition_gradients`.

    A loss must come divided by the ranks: gradients are summed.
    """

    buckets: list[Bucket]
    reducer: Reducer
    has_finished_pass: bool

    def backward_epilogue(self, *args: Any, **options: Any) -> None:
        """Send what is left of a micro-batch. Collective; nothing where `reduce_gradients` has done it."""
        if not self.has_finished_pass:
            self.reducer.finish()
        self.has_finished_pass = False

    def reduce_gradients(self, pipeline_parallel: bool = False) -> None:
        """Send what is left of the last micro-batch of a step. Collective."""
        self.reducer.finish()
        self.has_finished_pass = True

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Clip, update and gather; a step whose gradient norm is not finite is skipped on every rank. Collective."""
        own = [bucket.own for bucket in self.buckets if bucket.own is not None]
        for bucket in self.buckets:
            bucket.own = None
        clipped = self._judge(own)
        if clipped is None:
            return
        # Not a scalar, so that bf16 times it is float32, in one kernel.
        scale = torch.full((1,), clipped, device=own[0].device)
        groups = self.optimizer.param_groups
        rank, lane = torch_dist.get_rank(group=self.dp_process_group), self.reducer.lane
        for index in range(len(groups)):
            part = self.parallel_partitioned_bit16_groups[index][rank]
            take_step(self.optimizer, groups[index], own.pop(0), scale, part)
            if len(self.parallel_partitioned_bit16_groups[index]) > 1:
                with lane.after_all():
                    gather_parts(self.bit16_groups_flat[index], part, self.dp_process_group)
        lane.join()
        self._lazy_init_hp_params_optimizer_state()
