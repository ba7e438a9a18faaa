"""A Triton kernel: cross-entropy of a chunk of logits and its gradient, in place, in two passes.

Eager PyTorch makes five passes over the logits and a float32 copy; this reads them twice and writes once.
Imported only on a GPU.

Shapes: n rows (tokens), V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from trainer.model.head.bend import NO_BEND, Bend

BLOCK = 16384
WARPS = 32
SKIP = -2
"""Label of a row that another kernel has done."""


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _bent(logits, scale, cap, bends: tl.constexpr, caps: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return logits as the model changes them after the output layer; -inf outside a row stays."""
    if bends:
        inside = logits != float("-inf")
        logits *= scale
        if caps:
            # tanh by exp of what is not positive, so that nothing overflows.
            small = tl.exp(-2.0 * tl.abs(logits / cap))
            bent = cap * (1.0 - small) / (1.0 + small)
            logits = tl.where(logits < 0, -bent, bent)
        logits = tl.where(inside, logits, float("-inf"))
    return logits


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def sum_row(  # type: ignore[no-untyped-def]
    logits_ptr,
    largest,
    vocab_size,
    scale,
    cap,
    bends: tl.constexpr,
    caps: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Return (m, sum of exp(logit - m)) of a row, m the largest logit and at least `largest`."""
    total = 0.0
    for start in range(0, vocab_size, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        values = tl.load(logits_ptr + columns, mask=columns < vocab_size, other=float("-inf")).to(tl.float32)
        values = _bent(values, scale, cap, bends, caps)
        new_largest = tl.maximum(largest, tl.max(values, 0))
        total = total * tl.exp(largest - new_largest) + tl.sum(tl.exp(values - new_largest), 0)
        largest = new_largest
    return largest, total


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _softmax_step_kernel(  # type: ignore[no-untyped-def]
    logits_ptr,
    labels_ptr,
    nll_ptr,
    stride,
    vocab_size,
    scale,
    cap,
    needs_grad: tl.constexpr,
    skips: tl.constexpr,
    bends: tl.constexpr,
    caps: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * stride
    label = tl.load(labels_ptr + row)
    if skips:  # noqa: SIM102  `and` of a constexpr and a value is not short-circuited by triton
        if label == -2:  # SKIP
            return
    if label < 0:
        tl.store(nll_ptr + row, 0.0)
        if needs_grad:
            for start in range(0, vocab_size, BLOCK):
                columns = start + tl.arange(0, BLOCK)
                tl.store(logits_ptr + columns, 0.0, mask=columns < vocab_size)
        return
    lowest = tl.full((), float("-inf"), tl.float32)
    largest, total = sum_row(logits_ptr, lowest, vocab_size, scale, cap, bends, caps, BLOCK)
    target = _bent(tl.load(logits_ptr + label).to(tl.float32), scale, cap, bends, caps)
    log_total = largest + tl.log(total)
    tl.store(nll_ptr + row, log_total - target)
    if needs_grad:
        for start in range(0, vocab_size, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            inside = columns < vocab_size
            values = tl.load(logits_ptr + columns, mask=inside, other=float("-inf")).to(tl.float32)
            values = _bent(values, scale, cap, bends, caps)
            grad = tl.exp(values - log_total)
            grad = tl.where(columns == label, grad - 1.0, grad)
            if caps:
                grad *= 1.0 - (values / cap) * (values / cap)
            if bends:
                grad *= scale
            tl.store(logits_ptr + columns, grad, mask=inside)


def fused_softmax_step(
    logits: Tensor, labels: Tensor, needs_grad: bool, bend: Bend = NO_BEND, nll: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return (nll [n] float32, gradient [n, V]); the gradient overwrites the logits.

    Args:
        bend: What is done to logits before the loss; the gradient is that of what they were before it.
        nll: Where rows labelled SKIP have their loss already; neither it nor their gradient is touched.
    """
    num_rows, vocab_size = logits.shape
    skips = nll is not None
    if nll is None:
        nll = torch.empty(num_rows, dtype=torch.float32, device=logits.device)
    launch: Any = _softmax_step_kernel[(num_rows,)]
    block = block_size(vocab_size)
    launch(
        logits,
        labels,
        nll,
        logits.stride(0),
        vocab_size,
        bend.scale,
        bend.cap or 1.0,
        needs_grad,
        skips,
        not bend.is_none,
        bend.cap is not None,
        block,
        num_warps=num_warps(block),
    )
    return nll, logits


def block_size(vocab_size: int) -> int:
    """Return the columns that a program reads at once."""
    return int(min(BLOCK, triton.next_power_of_2(vocab_size)))


def num_warps(block: int) -> int:
    """Return the warps of a program."""
    return WARPS if block >= 8192 else 4
