"""ZeRO-3 with a step in one pass: DeepSpeed shards and gathers, and this updates.

DeepSpeed's step flattens the gradients of a sub-group, converts, scales, updates and rounds them, each over all of the
memory: some 60 bytes a parameter where 28 do, and a norm of each parameter by itself. Gradients lie in one flat buffer
already, in the order of the masters.

Source: deepspeed 0.19.8, `step` of runtime/zero/stage3.py. 110 ms of an 860 ms step (8B shape, two H200) were its.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.distributed as torch_dist
from torch import Tensor

from trainer.dist.mesh import import_deepspeed
from trainer.engine.squares import sum_of_squares
from trainer.engine.update import take_step

import_deepspeed()
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3  # noqa: E402


def is_for(ds_config: dict[str, Any]) -> bool:
    """Tell whether the stage is one that shards weights, with all of it on the device."""
    zero = ds_config["zero_optimization"]
    return zero["stage"] == 3 and not zero.keys() & {"offload_optimizer", "offload_param", "zenflow"}


def step_in_one_pass(optimizer: Any) -> None:
    """Turn DeepSpeed's optimizer of stage 3 into one whose step is ours, in place, before its first step."""
    assert type(optimizer) is DeepSpeedZeroOptimizer_Stage3
    for flat, parts in zip(
        optimizer.fp16_partitioned_groups_flat, optimizer.fp16_partitioned_groups, strict=True
    ):
        begins = itertools.accumulate((part.numel() * part.element_size() for part in parts), initial=0)
        assert all(
            part.data_ptr() == flat.data_ptr() + begin for part, begin in zip(parts, begins, strict=False)
        ), "weights of a rank must lie one after the other"
    optimizer.__class__ = ShardedZeroOptimizer
    sizes = [int(size) for size in optimizer.fp16_partitioned_groups_flat_numel]
    optimizer.own_gradients = optimizer.grad_partitions_flat_buffer.split(sizes)


class ShardedZeroOptimizer(DeepSpeedZeroOptimizer_Stage3):  # type: ignore[misc]
    """DeepSpeed's stage 3 with a step in one pass; made by `step_in_one_pass`."""

    own_gradients: tuple[Tensor, ...]
    """This rank's part of the averaged gradients, one a sub-group; views of DeepSpeed's one buffer."""
    _scale: Tensor

    def _get_norm_groups(self) -> list[Tensor]:
        """Return the norm over all sub-groups and ranks; the padding in the gradients is zero. Collective."""
        total = sum_of_squares(self.grad_partitions_flat_buffer)
        torch_dist.all_reduce(total, group=self.dp_process_group)
        return [total.sqrt().float()]

    def _prepare_sub_group(self, sub_group_id: int, timer_names: Any) -> None:
        """Leave the gradients where they are."""

    def unscale_and_clip_grads(self, sub_group_id: int, total_norm: Tensor) -> None:
        """Work out what the gradients are multiplied by, on the device."""
        excess = (total_norm + 1e-6) / self.clip_grad if self.clip_grad > 0 else torch.ones_like(total_norm)
        self._scale = excess.clamp(min=1.0).reciprocal().reshape(1).float()

    def _optimizer_step(self, sub_group_id: int) -> None:
        """Update this rank's part of a sub-group and round it to the weights' dtype."""
        group = self.optimizer.param_groups[self.sub_group_to_group_id[sub_group_id]]
        group = group | {"params": [self.fp32_partitioned_groups_flat[sub_group_id]]}
        rounded = self.fp16_partitioned_groups_flat[sub_group_id]
        take_step(self.optimizer, group, self.own_gradients[sub_group_id], self._scale, rounded)
        self.averaged_gradients[sub_group_id] = None

    def _reassign_or_swap_out_partitioned_parameters(self, sub_group_id: int) -> None:
        """Leave the weights, which are views of what was just written."""
