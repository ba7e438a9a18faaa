"""A Triton kernel: cross-entropy plus KL to the base of some rows of logits and their gradient, in place.

One program a row. It takes the K logits of the base's top tokens aside and puts -inf in their place, so that the
same two passes that the cross-entropy takes see the rest alone and its mass is exact; then it writes the K back.
Imported only on a GPU. The maths is in divergence.py.

Shapes: n rows (tokens) of a chunk, R of them with a base, K top tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from trainer.model.head.comparison import LEAST_MASS
from trainer.model.head.divergence import TopTokens
from trainer.model.head.fused_softmax import SKIP, block_size, fused_softmax_step, num_warps, sum_row


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _divergence_step_kernel(  # type: ignore[no-untyped-def]
    logits_ptr,
    rows_ptr,
    labels_ptr,
    ids_ptr,
    log_probs_ptr,
    nll_ptr,
    kl_ptr,
    stride,
    vocab_size,
    num_top,
    beta,
    least_mass,
    needs_grad: tl.constexpr,
    TOP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    slot = tl.program_id(0).to(tl.int64)
    row = tl.load(rows_ptr + slot)
    logits_ptr += row * stride
    label = tl.load(labels_ptr + row)
    target = tl.load(logits_ptr + label).to(tl.float32)
    place = tl.arange(0, TOP)
    is_top = place < num_top
    ids = tl.load(ids_ptr + slot * num_top + place, mask=is_top, other=0)
    base = tl.load(log_probs_ptr + slot * num_top + place, mask=is_top, other=0.0)
    probs = tl.where(is_top, tl.exp(base), 0.0)
    top = tl.load(logits_ptr + ids, mask=is_top, other=float("-inf")).to(tl.float32)
    tl.debug_barrier()
    tl.store(logits_ptr + ids, float("-inf"), mask=is_top)
    tl.debug_barrier()
    largest, others = sum_row(logits_ptr, tl.max(top, 0), vocab_size, 1.0, 1.0, False, False, BLOCK)
    total = others + tl.sum(tl.exp(top - largest), 0)
    log_total = largest + tl.log(total)
    mass = tl.sum(probs, 0)
    base_rest = tl.maximum(1.0 - mass, least_mass)
    rest = others / total
    safe_rest = tl.maximum(rest, least_mass)
    kl = tl.sum(tl.where(is_top, probs * (base - (top - log_total)), 0.0), 0)
    tl.store(kl_ptr + slot, kl + base_rest * tl.log(base_rest / safe_rest))
    tl.store(nll_ptr + row, log_total - target)
    if needs_grad:
        pull = tl.where(rest >= least_mass, base_rest, 0.0)
        weight = mass + pull
        scale = 1.0 + beta * (weight - pull / safe_rest)
        for start in range(0, vocab_size, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            inside = columns < vocab_size
            values = tl.load(logits_ptr + columns, mask=inside, other=float("-inf")).to(tl.float32)
            grad = scale * tl.exp(values - log_total)
            grad = tl.where(columns == label, grad - 1.0, grad)
            tl.store(logits_ptr + columns, grad, mask=inside)
        tl.debug_barrier()
        grad = (1.0 + beta * weight) * tl.exp(top - log_total) - beta * probs
        grad = tl.where(ids == label, grad - 1.0, grad)
        tl.store(logits_ptr + ids, grad, mask=is_top)


def fused_divergence_step(
    logits: Tensor, labels: Tensor, base: TopTokens, needs_grad: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (nll [n] float32, gradient [n, V] of nll + beta KL, KL [R] float32); the logits are overwritten."""
    num_rows, vocab_size = logits.shape
    num_base, num_top = base.ids_RK.shape
    nll = torch.empty(num_rows, dtype=torch.float32, device=logits.device)
    kl = torch.empty(num_base, dtype=torch.float32, device=logits.device)
    launch: Any = _divergence_step_kernel[(num_base,)]
    block = block_size(vocab_size)
    launch(
        logits,
        base.rows_R,
        labels,
        base.ids_RK.contiguous(),
        base.log_probs_RK.float().contiguous(),
        nll,
        kl,
        logits.stride(0),
        vocab_size,
        num_top,
        base.beta,
        LEAST_MASS,
        needs_grad,
        triton.next_power_of_2(num_top),
        block,
        num_warps=num_warps(block),
    )
    nll, grad = fused_softmax_step(logits, labels.index_fill(0, base.rows_R, SKIP), needs_grad, nll=nll)
    return nll, grad, kl
