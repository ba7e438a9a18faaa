"""ZeRO-1 for adapters: gradients of all trained parameters in one flat buffer, one norm, one update.

DeepSpeed's stage 1 handles each parameter by itself: a hook, a copy, a norm in float64 and a check for infinities. An
adapter has hundreds of small ones: the launches of 448 with 42 M elements (LoRA on 8B, H200) took 100 ms of a 640 ms
step, and this takes 2. What is kept is DeepSpeed's: float32 masters and Adam's state in flat partitions, one group
after the other, so checkpoints are laid out the same.

Source: deepspeed 0.19.8, runtime/zero/stage_1_and_2.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as torch_dist
from torch import Tensor, nn

from trainer.dist.mesh import import_deepspeed
from trainer.engine.squares import sum_of_squares

import_deepspeed()
from deepspeed.runtime.utils import all_gather_dp_groups  # noqa: E402
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer  # noqa: E402

MOST_ELEMENTS = 500_000_000
"""Trained elements up to which gradients are reduced at once, after the backward pass: 1 GB on the wire in bf16."""


def is_for(model: nn.Module, ds_config: dict[str, Any]) -> bool:
    """Tell whether one buffer holds the gradients: little of the model trains, at the stage whose state is flat."""
    parameters = list(model.parameters())
    trained = [p.numel() for p in parameters if p.requires_grad]
    zero = ds_config["zero_optimization"]
    is_plain = zero["stage"] == 1 and not zero.keys() & {"offload_optimizer", "zenflow"}
    return is_plain and len(trained) < len(parameters) and sum(trained) <= MOST_ELEMENTS


def take_over(optimizer: Any, owner: type[FlatZeroOptimizer]) -> Any:
    """Turn DeepSpeed's optimizer of stage 1 into one of ours, in place, without hooks; return its groups.

    Returns:
        Of each group the flat weights, the parameters that are views of them, and where each begins.
    """
    assert type(optimizer) is DeepSpeedZeroOptimizer and not optimizer.partition_gradients
    for hook in optimizer._grad_acc_hooks:
        hook.remove()
    optimizer._grad_acc_hooks.clear()
    optimizer.__class__ = owner
    return zip(
        optimizer.bit16_groups_flat,
        optimizer.round_robin_bit16_groups,
        optimizer.round_robin_bit16_offsets,
        strict=True,
    )


def flatten_gradients(optimizer: Any) -> None:
    """Turn DeepSpeed's optimizer of stage 1 into one with flat gradients, in place, before its first backward pass."""
    groups = take_over(optimizer, FlatZeroOptimizer)
    optimizer.flat_gradients = [FlatGradients(*group) for group in groups]


class FlatGradients:
    """Gradients of one group of parameters, accumulated in float32 over the micro-batches of a step."""

    def __init__(self, flat: Tensor, parameters: Sequence[nn.Parameter], offsets: Sequence[int]) -> None:
        """Take the flat buffer that the parameters are views of, and where each of them begins in it."""
        self._parameters = parameters
        self._staged = torch.zeros_like(flat)
        self._views = [
            self._staged.narrow(0, offset, p.numel()).view(p.shape)
            for p, offset in zip(parameters, offsets, strict=True)
        ]
        self._total = torch.zeros_like(flat, dtype=torch.float32)
        self._is_empty = True

    def collect(self) -> None:
        """Take what a backward pass left at the parameters and add it up."""
        views, grads = [], []
        for view, parameter in zip(self._views, self._parameters, strict=True):
            if parameter.grad is not None:
                views.append(view)
                grads.append(parameter.grad)
                parameter.grad = None
        if not grads:
            return
        if len(grads) < len(self._parameters):  # what no token reached has no gradient
            self._staged.zero_()
        torch._foreach_copy_(views, grads)
        if self._is_empty:
            self._total.copy_(self._staged)
        else:
            self._total.add_(self._staged)
        self._is_empty = False

    def averaged(self, group: Any, dtype: torch.dtype) -> Tensor:
        """Return the mean over ranks, float32, and begin anew; valid until the next `collect`. Collective.

        Args:
            dtype: What is added up between ranks; the division comes before, in float32.
        """
        if self._is_empty:
            self._total.zero_()
        self._is_empty = True
        num_ranks = torch_dist.get_world_size(group=group)
        if num_ranks == 1:
            return self._total
        wire = self._total.div_(num_ranks).to(dtype)
        torch_dist.all_reduce(wire, group=group)
        return self._total.copy_(wire)


class FlatZeroOptimizer(DeepSpeedZeroOptimizer):  # type: ignore[misc]
    """DeepSpeed's stage 1 with flat gradients; made by `flatten_gradients`."""

    flat_gradients: list[FlatGradients]
    own_gradients: list[Tensor]
    """This rank's part of the averaged gradients, one a group; set by the last backward pass of a step."""

    @torch.no_grad()
    def backward_epilogue(self, *args: Any, **options: Any) -> None:
        """Collect the gradients of a micro-batch."""
        for gradients in self.flat_gradients:
            gradients.collect()

    @torch.no_grad()
    def reduce_gradients(self, pipeline_parallel: bool = False) -> None:
        """Collect those of the last micro-batch of a step and average all over ranks. Collective."""
        self.backward_epilogue()
        self.own_gradients = []
        for index, gradients in enumerate(self.flat_gradients):
            group = self.real_dp_process_group[index]
            averaged = gradients.averaged(group, self.communication_data_type)
            size = int(self.partition_size[index])
            self.own_gradients.append(averaged.narrow(0, torch_dist.get_rank(group=group) * size, size))

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Clip and update; a step whose gradient norm is not finite is skipped on every rank. Collective."""
        own, self.own_gradients = self.own_gradients, []
        scale = self._judge(own)
        if scale is None:
            return
        if scale < 1:
            torch._foreach_mul_(own, scale)
        for master, gradient in zip(self.single_partition_of_fp32_groups, own, strict=True):
            master.grad = gradient
        self.optimizer.step()
        for master in self.single_partition_of_fp32_groups:
            master.grad = None
        self._lazy_init_hp_params_optimizer_state()
        for index, master in enumerate(self.single_partition_of_fp32_groups):
            rank = torch_dist.get_rank(group=self.real_dp_process_group[index])
            self.parallel_partitioned_bit16_groups[index][rank].copy_(master)
        if torch_dist.get_world_size(group=self.dp_process_group) > 1:
            all_gather_dp_groups(
                groups_flat=self.bit16_groups_flat,
                partitioned_param_groups=self.parallel_partitioned_bit16_groups,
                dp_process_group=self.real_dp_process_group,
                start_alignment_factor=self.nccl_start_alignment_factor,
                allgather_bucket_size=self.allgather_bucket_size,
            )

    def _judge(self, own: list[Tensor]) -> float | None:
        """Return what clipping multiplies gradients by, 1 for none; None where their norm is not finite. Collective."""
        norm = self._norm(own)
        self.overflow = not math.isfinite(norm)
        self._global_grad_norm = math.inf if self.overflow else norm
        if self.overflow:
            return None
        excess = (norm + 1e-6) / self.clip_grad if self.clip_grad > 0 else 1.0
        return 1 / max(excess, 1.0)

    def _norm(self, own: list[Tensor]) -> float:
        """Return the norm of the gradients over all groups and ranks; the padding in them is zero."""
        total = torch.stack([sum_of_squares(gradient) for gradient in own]).sum()
        torch_dist.all_reduce(total, group=self.dp_process_group)
        return math.sqrt(float(total))
