"""One update of a flat part of the float32 masters, rounded to the weights' dtype."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainer.optim.base_pull import BasePull

PULL = "base_pull"
"""Attribute of an optimizer that has one: trainer/optim/base_pull.py."""


def pull_after_steps(optimizer: torch.optim.Optimizer, pull: BasePull) -> None:
    """Let every step of an optimizer be followed by a pull of what it updated, one of `take_step` too."""
    setattr(optimizer, PULL, pull)
    optimizer.register_step_post_hook(pull)


@torch.no_grad()
def take_step(
    optimizer: torch.optim.Optimizer, group: dict[str, Any], gradient: Tensor, scale: Tensor, rounded: Tensor
) -> None:
    """Update the one flat tensor of a group as `optimizer`, an AdamW, would; on a GPU in one pass.

    Args:
        gradient: As long as the tensor, of any dtype.
        scale: What it is multiplied by, [1], float32.
        rounded: Where the new weights are written in their dtype; as long.
    """
    if gradient.device.type == "cuda":
        from trainer.optim import fused_adamw

        fused_adamw.take_step(optimizer, group, gradient, scale, rounded)
        pull = getattr(optimizer, PULL, None)
        if pull is not None:  # on a CPU it is a hook of the step
            pull.pull(group)
            rounded.copy_(group["params"][0])
        return
    (master,) = group["params"]
    master.grad = gradient * scale
    groups, optimizer.param_groups = optimizer.param_groups, [group]
    try:
        optimizer.step()
    finally:
        optimizer.param_groups = groups
    master.grad = None
    rounded.copy_(master)
