"""Summed cross-entropy of the output layer, and KL to a teacher where there is one: gradients made in the forward pass.

Chunk by chunk, so the logits of a long pack never exist at once.

Shapes: N tokens, H hidden, V vocabulary, R tokens with a teacher, K most likely tokens of the teacher.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainer.errors import ModelError
from trainer.model.head.ask import IGNORE, HeadAsk, Output, working_type
from trainer.model.head.bend import NO_BEND, Bend
from trainer.model.head.divergence import TopTokens, divergence_step
from trainer.model.head.top import ROWS_AT_ONCE
from trainer.model.token_slices import TokenSlices


@dataclass(frozen=True, slots=True)
class Nll(HeadAsk[tuple[Tensor, ...]]):
    """Ask for (loss_sum, nll_N), and kl_R with a teacher; float32.

    loss_sum is the sum of nll_N plus beta times that of kl_R, both by weight where there are weights, and the only one
    with a gradient.
    """

    labels_N: Tensor
    """Next tokens; -100 is not supervised."""
    teacher: TopTokens | None = None
    weights_N: Tensor | None = None
    """What a token counts in loss_sum, float32; None: all alike."""

    def within(self, slices: TokenSlices, num_packs: int) -> Nll:
        """Return the question about this rank's slice of every pack.

        Raises:
            ModelError: A teacher's places are those of whole packs.
        """
        if self.teacher is not None:
            raise ModelError("A teacher must be asked of whole packs, but is asked of slices instead.")
        own = [
            None if of_all is None else slices.own(of_all.reshape(num_packs, -1)).reshape(-1)
            for of_all in (self.labels_N, self.weights_N)
        ]
        assert own[0] is not None, "there are labels"
        return Nll(own[0], weights_N=own[1])

    def answer(self, hidden: Tensor, output: Output) -> tuple[Tensor, ...]:
        """Take the losses of all rows."""
        hidden_NH = hidden.reshape(-1, hidden.shape[-1])
        found: tuple[Tensor, ...] = ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
            hidden_NH,
            output.weight_VH,
            output.bias_V,
            self.labels_N,
            output.chunk_tokens,
            self.teacher,
            output.bend,
            self.weights_N,
        )
        return found


class ChunkedCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy of a linear layer, and KL to a base where there is one, in chunks of tokens."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        labels_N: Tensor,
        chunk_tokens: int,
        base: TopTokens | None = None,
        bend: Bend = NO_BEND,
        weights_N: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Return (loss_sum, nll_N), and kl_R with a base; float32, nll is 0 where the label is -100.

        loss_sum is the sum of nll_N plus beta times that of kl_R, both by weight where there are weights.
        """
        needs_hidden, needs_weight = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        num_tokens = hidden_NH.shape[0]
        nll_N = torch.zeros(num_tokens, dtype=working_type(hidden_NH), device=hidden_NH.device)
        kls: list[Tensor] = []
        grad_hidden = torch.empty_like(hidden_NH) if needs_hidden else None
        grads = _HeadGrads(weight_VH, needs_weight, num_tokens <= chunk_tokens)
        grad_bias: Tensor | None = None
        if bias_V is not None and ctx.needs_input_grad[2]:
            grad_bias = torch.zeros_like(bias_V, dtype=working_type(bias_V))
        for start in range(0, num_tokens, chunk_tokens):
            part = slice(start, start + chunk_tokens)
            logits = nn.functional.linear(hidden_NH[part], weight_VH, bias_V)
            chosen = None if base is None else base.within(start, start + chunk_tokens)
            nll_N[part], grad_logits, kl = _softmax_step(
                logits, labels_N[part], chosen, needs_hidden or needs_weight, bend
            )
            if kl is not None:
                kls.append(kl)
            if weights_N is not None and (needs_hidden or needs_weight):
                grad_logits.mul_(weights_N[part, None])
            if grad_hidden is not None:
                torch.mm(grad_logits, weight_VH, out=grad_hidden[part])
            grads.add(grad_logits, hidden_NH[part])
            if grad_bias is not None:
                grad_bias += grad_logits.sum(0, dtype=grad_bias.dtype)
        ctx.save_for_backward(grad_hidden, grads.total, grad_bias)
        ctx.weight_dtype = weight_VH.dtype
        counted_N = nll_N if weights_N is None else weights_N * nll_N
        if base is None:
            ctx.mark_non_differentiable(nll_N)
            return counted_N.sum(), nll_N
        kl_R = torch.cat(kls) if kls else nll_N.new_zeros(0)
        ctx.mark_non_differentiable(nll_N, kl_R)
        counted_R = kl_R if weights_N is None or not kls else weights_N[base.rows_R] * kl_R
        if base.how.cross_entropy != 1:
            counted_N = counted_N.index_put((base.rows_R,), base.how.cross_entropy * counted_N[base.rows_R])
        return counted_N.sum() + base.beta * counted_R.sum(), nll_N, kl_R

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        """Scale the gradients made in forward; no host synchronisation."""
        grad_hidden, grad_weight, grad_bias = ctx.saved_tensors
        scale = grad_outputs[0]
        if grad_hidden is not None:
            _scale_in_place(grad_hidden, scale)
        if grad_weight is not None:
            _scale_in_place(grad_weight, scale)
            grad_weight = grad_weight.to(ctx.weight_dtype)
        if grad_bias is not None:
            grad_bias = (grad_bias * scale).to(ctx.weight_dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None, None


def _scale_in_place(grad: Tensor, scale: Tensor) -> None:
    """Multiply by a scalar in float32; a bf16 product would first round the scale, for all alike."""
    if grad.dtype in (torch.float32, torch.float64):
        grad.mul_(scale)
        return
    for block in torch.split(grad, 8192):  # type: ignore[no-untyped-call, unused-ignore]
        block.copy_(block.float() * scale)


class _HeadGrads:
    """Sum of the weight gradient over chunks: fp32, except that a single chunk needs no sum."""

    def __init__(self, weight_VH: Tensor, needed: bool, single_chunk: bool) -> None:
        self._needed = needed
        self._single = single_chunk
        self.total: Tensor | None = None
        if needed and not single_chunk:
            self.total = torch.zeros_like(weight_VH, dtype=working_type(weight_VH))

    def add(self, grad_logits: Tensor, hidden: Tensor) -> None:
        if not self._needed:
            return
        if self._single:
            self.total = torch.mm(grad_logits.t(), hidden)
            return
        assert self.total is not None
        if grad_logits.is_cuda and grad_logits.dtype != torch.float32:
            torch.addmm(self.total, grad_logits.t(), hidden, out_dtype=torch.float32, out=self.total)
        else:
            self.total += torch.mm(grad_logits.t(), hidden)


def _softmax_step(
    logits: Tensor, labels: Tensor, base: TopTokens | None, needs_grad: bool, bend: Bend = NO_BEND
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return (nll [n], d loss / d logits [n, V], KL [R] with a base) of one chunk.

    On a GPU the logits are overwritten.

    Args:
        logits: Those of the output layer, before they are bent; the gradient is that of these.
    """
    if logits.is_cuda:
        return _fused_step(logits, labels, base, needs_grad, bend)
    supervised = labels != IGNORE
    targets = torch.where(supervised, labels, 0).unsqueeze(1)
    bent = logits if bend.is_none else bend.of(logits.to(working_type(logits)))
    log_probs = torch.log_softmax(bent, dim=-1, dtype=working_type(logits))
    nll = torch.where(supervised, -log_probs.gather(1, targets).squeeze(1), 0.0)
    kl: Tensor | None = None
    kl_grad: Tensor | None = None
    if base is not None:
        kl, kl_grad = divergence_step(bent[base.rows_R].to(log_probs.dtype), base, needs_grad)
    if not needs_grad:
        return nll, logits, kl
    grad = log_probs.exp_()
    grad.scatter_add_(1, targets, torch.full_like(targets, -1, dtype=grad.dtype))
    grad.mul_(supervised.unsqueeze(1))
    if base is not None and kl_grad is not None:
        _weigh_rows(grad, base)
        grad.index_add_(0, base.rows_R, kl_grad, alpha=base.beta)
    return nll, bend.back_(grad, bent).to(logits.dtype), kl


def _weigh_rows(grad: Tensor, base: TopTokens) -> None:
    """Scale the gradient of the cross-entropy of rows with a teacher, in place."""
    if base.how.cross_entropy != 1:
        factors = torch.ones(len(grad), dtype=grad.dtype, device=grad.device)
        grad.mul_(factors.index_fill_(0, base.rows_R, base.how.cross_entropy).unsqueeze(1))


def _fused_step(
    logits: Tensor, labels: Tensor, base: TopTokens | None, needs_grad: bool, bend: Bend
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Do the same with kernels of a GPU."""
    from trainer.model.head.fused_softmax import fused_softmax_step

    if base is None:
        return *fused_softmax_step(logits, labels, needs_grad, bend), None
    if not base.how.is_plain or base.log_rest_R is not None:
        return _partly_fused_step(logits, labels, base, needs_grad, bend)
    from trainer.model.head.fused_divergence import fused_divergence_step

    if bend.is_none:
        return fused_divergence_step(logits, labels, base, needs_grad)
    bent = bend.of(logits.float())
    nll, grad, kl = fused_divergence_step(bent.clone(), labels, base, needs_grad)
    return nll, bend.back_(grad, bent).to(logits.dtype) if needs_grad else logits, kl


def _partly_fused_step(
    logits: Tensor, labels: Tensor, base: TopTokens, needs_grad: bool, bend: Bend
) -> tuple[Tensor, Tensor, Tensor]:
    """Do the same where a divergence has no kernel: some rows at a time in float32, beside the fused cross-entropy."""
    from trainer.model.head.fused_softmax import fused_softmax_step

    found: list[Tensor] = []
    grads: list[Tensor] = []
    num_rows = len(base.host_rows_R)
    for start in range(0, num_rows, ROWS_AT_ONCE):
        stop = min(start + ROWS_AT_ONCE, num_rows)
        first, last = int(base.host_rows_R[start]), int(base.host_rows_R[stop - 1]) + 1
        part = base.within(first, last)
        assert part is not None, "it holds rows of the teacher"
        plain = logits[first:last][part.rows_R].float()
        bent = plain if bend.is_none else bend.of(plain)
        divergences, grad = divergence_step(bent, part, needs_grad)
        found.append(divergences)
        if grad is not None:
            grads.append(bend.back_(grad, bent).mul_(base.beta).to(logits.dtype))
    nll, grad = fused_softmax_step(logits, labels, needs_grad, bend)
    if needs_grad:
        _weigh_rows(grad, base)
        for start, more in zip(range(0, num_rows, ROWS_AT_ONCE), grads, strict=True):
            grad.index_add_(0, base.rows_R[start : start + ROWS_AT_ONCE], more)
    return nll, grad, torch.cat(found)
