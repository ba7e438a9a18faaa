"""A Triton kernel: scales a gradient, takes a step of AdamW and rounds the weights, in one pass.

28 bytes a parameter go over the memory bus with gradients and weights in bf16; torch's fused AdamW with a product
before it and a copy after it takes 60. Imported only on a GPU.

Source: Loshchilov and Hutter, arXiv:1711.05101; the order of roundings is that of torch's fused kernel.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096
WARPS = 8


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _step_kernel(  # type: ignore[no-untyped-def]
    master_ptr,
    mean_ptr,
    square_ptr,
    gradient_ptr,
    rounded_ptr,
    step_ptr,
    scale_ptr,
    size,
    lr,
    kept,
    log2_beta1,
    log2_beta2,
    new1,
    new2,
    eps,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    step = tl.load(step_ptr).to(tl.float64)
    correction1 = (1.0 - tl.exp2(step * log2_beta1)).to(tl.float32)
    correction2 = tl.sqrt((1.0 - tl.exp2(step * log2_beta2)).to(tl.float32))
    gradient = tl.load(gradient_ptr + at, mask=inside, other=0.0).to(tl.float32) * tl.load(scale_ptr)
    mean = tl.load(mean_ptr + at, mask=inside, other=0.0)
    mean += new1 * (gradient - mean)
    square = tl.load(square_ptr + at, mask=inside, other=0.0)
    square += new2 * (gradient * gradient - square)
    master = tl.load(master_ptr + at, mask=inside, other=0.0) * kept
    master -= lr / correction1 * mean / (tl.sqrt(square) / correction2 + eps)
    tl.store(mean_ptr + at, mean, mask=inside)
    tl.store(square_ptr + at, square, mask=inside)
    tl.store(master_ptr + at, master, mask=inside)
    tl.store(rounded_ptr + at, master.to(rounded_ptr.dtype.element_ty), mask=inside)


@torch.no_grad()
def take_step(
    optimizer: torch.optim.Optimizer, group: dict[str, Any], gradient: Tensor, scale: Tensor, rounded: Tensor
) -> None:
    """Update the one flat tensor of a group; arguments are those of trainer/engine/update.py, which calls it."""
    (master,) = group["params"]
    state = optimizer.state[master]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=master.device)
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(master), torch.zeros_like(master)
    state["step"] += 1
    beta1, beta2 = group["betas"]
    size = master.numel()
    _step_kernel[(triton.cdiv(size, BLOCK),)](
        *(master, state["exp_avg"], state["exp_avg_sq"], gradient, rounded, state["step"], scale),
        *(size, group["lr"], 1 - group["lr"] * group["weight_decay"]),
        *(math.log2(beta1), math.log2(beta2), 1 - beta1, 1 - beta2, group["eps"]),
        BLOCK=BLOCK,
        num_warps=WARPS,
    )
