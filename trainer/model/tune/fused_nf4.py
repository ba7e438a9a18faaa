"""A Triton kernel: packed NF4 weights with doubly quantised constants straight to their dtype, in one pass.

bitsandbytes makes a float32 tensor of the constants first, adds their mean in a second kernel, and unpacks in a third.
The bits are the same: products are rounded before the sum, as there. Imported only on a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 64
"""Weights that share a constant."""
OUTER = 256
"""Constants that share a constant of their own."""
PER_PROGRAM = 64
"""Blocks that a program unpacks."""


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _unpack_kernel(  # type: ignore[no-untyped-def]
    packed_ptr,
    table_ptr,
    constants_ptr,
    constant_table_ptr,
    outer_ptr,
    offset_ptr,
    out_ptr,
    num_blocks,
    BLOCK: tl.constexpr,
    OUTER: tl.constexpr,
    PER_PROGRAM: tl.constexpr,
):
    blocks = tl.program_id(0).to(tl.int64) * PER_PROGRAM + tl.arange(0, PER_PROGRAM)
    inside = blocks < num_blocks
    code = tl.load(constants_ptr + blocks, mask=inside, other=0).to(tl.int32)
    outer = tl.load(outer_ptr + blocks // OUTER, mask=inside, other=0.0)
    largest = tl.load(constant_table_ptr + code) * outer + tl.load(offset_ptr)
    pairs = blocks[:, None] * (BLOCK // 2) + tl.arange(0, BLOCK // 2)[None, :]
    both = tl.load(packed_ptr + pairs, mask=inside[:, None], other=0).to(tl.int32)
    first = tl.load(table_ptr + (both >> 4)) * largest[:, None]
    second = tl.load(table_ptr + (both & 15)) * largest[:, None]
    weights = tl.interleave(first, second).to(out_ptr.dtype.element_ty)
    places = blocks[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    tl.store(out_ptr + places, weights, mask=inside[:, None])


def is_for(state: Any) -> bool:
    """Tell whether weights are packed as the kernel reads them: constants packed too, and no block half full."""
    blocks = (state.blocksize, state.nested and state.state2.blocksize)
    return blocks == (BLOCK, OUTER) and state.quant_type == "nf4" and state.shape.numel() % BLOCK == 0


def unpack_nf4(packed: Tensor, state: Any) -> Tensor:
    """Return the weights that packed bytes stand for, in the state's shape and dtype."""
    out = torch.empty(state.shape, dtype=state.dtype, device=packed.device)
    num_blocks = out.numel() // BLOCK
    launch: Any = _unpack_kernel[(triton.cdiv(num_blocks, PER_PROGRAM),)]
    launch(
        packed.view(torch.uint8),
        state.code,
        state.absmax,
        state.state2.code,
        state.state2.absmax,
        state.offset,
        out,
        num_blocks,
        BLOCK,
        OUTER,
        PER_PROGRAM,
        enable_fp_fusion=False,  # a fused multiply-add would round once where bitsandbytes rounds twice
    )
    return out
