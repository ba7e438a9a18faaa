"""Triton kernels of a gated MLP with LoRA: the adapters' sums and gradients where gate and up are read anyway.

Partial sums go to memory and are added up in a fixed order, so that a run repeats to the last bit. Rounded to the
tensors' dtype where separate layers round. Imported only on a GPU.

Shapes: N tokens, F width of the MLP, R rank; S ranks of gate and up in a row; RANKS is R rounded up to what a matrix
unit takes.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

FORWARD_TILE = (32, 64)
FORWARD_WARPS = 8
BACKWARD_TILE = (64, 64)
BACKWARD_WARPS = 4
CHUNK = 1024
"""Rows that a program of the backward kernel goes through."""


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _product(left, right):  # type: ignore[no-untyped-def]
    return tl.dot(left, right, input_precision="ieee")


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _adapted(base_ptr, places, inside, low, b, scale):  # type: ignore[no-untyped-def]
    """Return a tile of base + scale low b^T, rounded to the dtype of the base, in float32."""
    base = tl.load(base_ptr + places, mask=inside, other=0.0)
    whole = base.to(tl.float32) + scale * _product(low, tl.trans(b))
    return whole.to(base.dtype).to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _inner_backward(grad, gate, up, dtype: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the gradients of gate and up, and silu(gate) * up."""
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    grad_gate = (grad * (silu * (1 - sigmoid) + sigmoid) * up).to(dtype)
    return grad_gate, (grad * silu).to(dtype), (silu.to(dtype).to(tl.float32) * up).to(dtype)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _gated_kernel(  # type: ignore[no-untyped-def]
    gate_ptr,
    up_ptr,
    low_ptr,
    b_gate_ptr,
    b_up_ptr,
    out_ptr,
    scale_gate,
    scale_up,
    num_rows,
    width,
    rank,
    RANKS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    ranks = tl.arange(0, RANKS)
    inside = (rows < num_rows)[:, None] & (columns < width)[None, :]
    places = rows[:, None] * width + columns[None, :]
    low_inside = (rows < num_rows)[:, None] & (ranks < rank)[None, :]
    low_places = rows[:, None] * (2 * rank) + ranks[None, :]
    b_inside = (columns < width)[:, None] & (ranks < rank)[None, :]
    b_places = columns[:, None] * rank + ranks[None, :]
    low_gate = tl.load(low_ptr + low_places, mask=low_inside, other=0.0)
    low_up = tl.load(low_ptr + rank + low_places, mask=low_inside, other=0.0)
    b_gate = tl.load(b_gate_ptr + b_places, mask=b_inside, other=0.0)
    b_up = tl.load(b_up_ptr + b_places, mask=b_inside, other=0.0)
    gate = _adapted(gate_ptr, places, inside, low_gate, b_gate, scale_gate)
    up = _adapted(up_ptr, places, inside, low_up, b_up, scale_up)
    dtype = out_ptr.dtype.element_ty
    silu = (gate * tl.sigmoid(gate)).to(dtype).to(tl.float32)
    tl.store(out_ptr + places, (silu * up).to(dtype), mask=inside)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _gated_backward_kernel(  # type: ignore[no-untyped-def]
    grad_ptr,
    grad_low_ptr,
    a_ptr,
    gate_ptr,
    up_ptr,
    low_ptr,
    b_gate_ptr,
    b_up_ptr,
    grad_gate_ptr,
    grad_up_ptr,
    low_parts_ptr,
    factor_parts_ptr,
    scale_gate,
    scale_up,
    num_rows,
    width,
    rank,
    CHUNK: tl.constexpr,
    RANKS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    chunk, tile = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    columns = tile * COLUMNS + tl.arange(0, COLUMNS)
    ranks = tl.arange(0, RANKS)
    b_inside = (columns < width)[:, None] & (ranks < rank)[None, :]
    b_places = columns[:, None] * rank + ranks[None, :]
    b_gate = tl.load(b_gate_ptr + b_places, mask=b_inside, other=0.0)
    b_up = tl.load(b_up_ptr + b_places, mask=b_inside, other=0.0)
    a_turned = tl.load(a_ptr + columns[:, None] + ranks[None, :] * width, mask=b_inside, other=0.0)
    sum_gate = tl.zeros((COLUMNS, RANKS), tl.float32)
    sum_up = tl.zeros((COLUMNS, RANKS), tl.float32)
    sum_a = tl.zeros((COLUMNS, RANKS), tl.float32)
    dtype = grad_gate_ptr.dtype.element_ty
    for start in range(0, CHUNK, ROWS):
        rows = chunk * CHUNK + start + tl.arange(0, ROWS)
        inside = (rows < num_rows)[:, None] & (columns < width)[None, :]
        places = rows[:, None] * width + columns[None, :]
        low_inside = (rows < num_rows)[:, None] & (ranks < rank)[None, :]
        low_places = rows[:, None] * (2 * rank) + ranks[None, :]
        low_gate = tl.load(low_ptr + low_places, mask=low_inside, other=0.0)
        low_up = tl.load(low_ptr + rank + low_places, mask=low_inside, other=0.0)
        grad_low = tl.load(grad_low_ptr + rows[:, None] * rank + ranks[None, :], mask=low_inside, other=0.0)
        gate = _adapted(gate_ptr, places, inside, low_gate, b_gate, scale_gate)
        up = _adapted(up_ptr, places, inside, low_up, b_up, scale_up)
        grad = _adapted(grad_ptr, places, inside, grad_low, a_turned, 1.0)
        grad_gate, grad_up, inner = _inner_backward(grad, gate, up, dtype)
        tl.store(grad_gate_ptr + places, grad_gate, mask=inside)
        tl.store(grad_up_ptr + places, grad_up, mask=inside)
        sum_gate += _product(tl.trans(grad_gate), low_gate)
        sum_up += _product(tl.trans(grad_up), low_up)
        sum_a += _product(tl.trans(inner), grad_low)
        part_ptr = low_parts_ptr + tile * num_rows * (2 * rank) + low_places
        tl.store(part_ptr, _product(grad_gate, b_gate) * scale_gate, mask=low_inside)
        tl.store(part_ptr + rank, _product(grad_up, b_up) * scale_up, mask=low_inside)
    factor_ptr = factor_parts_ptr + chunk * 3 * width * rank + b_places
    tl.store(factor_ptr, sum_gate * scale_gate, mask=b_inside)
    tl.store(factor_ptr + width * rank, sum_up * scale_up, mask=b_inside)
    tl.store(factor_ptr + 2 * width * rank, sum_a, mask=b_inside)


def fused_gated(
    gate_NF: Tensor,
    up_NF: Tensor,
    low_NS: Tensor,
    b_gate_FR: Tensor,
    b_up_FR: Tensor,
    scale_gate: float,
    scale_up: float,
) -> Tensor:
    """Return silu(gate) * up [N, F], both with their adapters' products added."""
    num_rows, width = gate_NF.shape
    rank = b_gate_FR.shape[1]
    out = torch.empty_like(gate_NF)
    rows, columns = FORWARD_TILE
    launch: Any = _gated_kernel[(triton.cdiv(num_rows, rows), triton.cdiv(width, columns))]
    launch(
        *(gate_NF, up_NF, low_NS, b_gate_FR.contiguous(), b_up_FR.contiguous(), out),
        *(scale_gate, scale_up, num_rows, width, rank),
        *(_ranks(rank), rows, columns),
        num_warps=FORWARD_WARPS,
    )
    return out


def fused_gated_backward(
    grad_NF: Tensor,
    grad_low_NR: Tensor,
    a_RF: Tensor,
    gate_NF: Tensor,
    up_NF: Tensor,
    *adapters: Any,
) -> tuple[Tensor, ...]:
    """Return the gradients of gate, up, low_NS, b_gate, b_up and a_RF.

    Args:
        adapters: low_NS, b_gate_FR, b_up_FR and the two scales.
    """
    low_NS, b_gate_FR, b_up_FR, scale_gate, scale_up = adapters
    num_rows, width = gate_NF.shape
    rank = b_gate_FR.shape[1]
    grad_gate, grad_up = torch.empty_like(gate_NF), torch.empty_like(up_NF)
    rows, columns = BACKWARD_TILE
    grid = (triton.cdiv(num_rows, CHUNK), triton.cdiv(width, columns))
    low_parts = gate_NF.new_empty((grid[1], num_rows, 2 * rank), dtype=torch.float32)
    factor_parts = gate_NF.new_empty((grid[0], 3, width, rank), dtype=torch.float32)
    launch: Any = _gated_backward_kernel[grid]
    launch(
        *(grad_NF, grad_low_NR, a_RF.contiguous(), gate_NF, up_NF, low_NS),
        *(b_gate_FR.contiguous(), b_up_FR.contiguous(), grad_gate, grad_up),
        *(low_parts, factor_parts, scale_gate, scale_up, num_rows, width, rank),
        *(CHUNK, _ranks(rank), rows, columns),
        num_warps=BACKWARD_WARPS,
    )
    grad_b_gate, grad_b_up, grad_a_FR = factor_parts.sum(0).to(b_gate_FR.dtype).unbind()
    return grad_gate, grad_up, low_parts.sum(0).to(low_NS.dtype), grad_b_gate, grad_b_up, grad_a_FR.t()


def _ranks(rank: int) -> int:
    return max(16, int(triton.next_power_of_2(rank)))
