"""Log-probabilities of supervised tokens with a gradient, for losses of whole sequences and of pairs.

What such a loss weighs a token by is known only after the forward pass. Where the output layer is frozen, the gradient
of each log-probability is made in the forward pass and weighed in the backward one, without another product with the
vocabulary; where it trains, its logits are made a second time, of the supervised rows alone.

Shapes: S supervised tokens, C rows of a chunk, H hidden, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.model.head.ask import HeadAsk, Output, working_type
from trainer.model.head.bend import Bend


@dataclass(frozen=True, slots=True)
class LogProbs(HeadAsk[Tensor]):
    """Ask for log p of each target [S], float32, differentiable; rows without a target never meet the output layer."""

    rows_S: Tensor
    """Positions of the flattened batch, ascending."""
    targets_S: Tensor

    def answer(self, hidden: Tensor, output: Output) -> Tensor:
        """Take them, a chunk of rows at a time."""
        hidden_SH = hidden.reshape(-1, hidden.shape[-1])[self.rows_S]
        found: Tensor = ChunkedLogProbs.apply(  # type: ignore[no-untyped-call]
            hidden_SH, output.weight_VH, output.bias_V, self.targets_S, output.chunk_tokens, output.bend
        )
        return found


class ChunkedLogProbs(torch.autograd.Function):
    """Log-softmax of a linear layer at one target a row, in chunks of rows."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_SH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        targets_S: Tensor,
        chunk_tokens: int,
        bend: Bend,
    ) -> Tensor:
        """Return log p [S], float32, or float64 for a model in float64."""
        output = Output(weight_VH, bias_V, chunk_tokens, bend)
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        ctx.is_frozen = not (needs_weight or needs_bias)
        log_probs_S = torch.empty(len(hidden_SH), dtype=working_type(hidden_SH), device=hidden_SH.device)
        units_SH = torch.empty_like(hidden_SH) if needs_hidden and ctx.is_frozen else None
        for part in _chunks(len(hidden_SH), chunk_tokens):
            into = None if units_SH is None else units_SH[part]
            log_probs_S[part] = _take(output, hidden_SH[part], targets_S[part, None], into)
        ctx.chunk_tokens, ctx.bend = chunk_tokens, bend
        kept = (units_SH,) if ctx.is_frozen else (hidden_SH, weight_VH, bias_V, targets_S)
        ctx.save_for_backward(*kept)
        return log_probs_S

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        """Weigh the gradient of each row's log-probability by what came back for it."""
        weights_S1 = grad_outputs[0][:, None]
        if ctx.is_frozen:
            (units_SH,) = ctx.saved_tensors
            grad_hidden = None if units_SH is None else (units_SH * weights_S1).to(units_SH.dtype)
            return grad_hidden, None, None, None, None, None
        hidden_SH, weight_VH, bias_V, targets_S = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        output = Output(weight_VH, bias_V, ctx.chunk_tokens, ctx.bend)
        grad_hidden = torch.empty_like(hidden_SH) if needs_hidden else None
        total = working_type(weight_VH)
        grad_weight = torch.zeros_like(weight_VH, dtype=total) if needs_weight else None
        grad_bias = torch.zeros_like(bias_V, dtype=total) if needs_bias and bias_V is not None else None
        for part in _chunks(len(hidden_SH), ctx.chunk_tokens):
            hidden_CH, weights_C1 = hidden_SH[part], weights_S1[part]
            narrow_CV = _weighed(output, hidden_CH, targets_S[part, None], weights_C1, grad_bias)
            if grad_hidden is not None:
                torch.mm(narrow_CV, weight_VH, out=grad_hidden[part])
            if grad_weight is not None:
                grad_weight += torch.mm(narrow_CV.t(), hidden_CH)
            del narrow_CV  # before the next chunk is made
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight_VH.dtype),
            None if grad_bias is None or bias_V is None else grad_bias.to(bias_V.dtype),
            None,
            None,
            None,
        )


def _chunks(num_rows: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, num_rows, size)]


def _take(output: Output, hidden_CH: Tensor, targets_C1: Tensor, into_CH: Tensor | None) -> Tensor:
    """Return log p [C] of a chunk, and write the gradient of each where one is asked for; nothing else outlives it."""
    logits_CV, log_probs_CV = _log_softmax(output, hidden_CH)
    found = log_probs_CV.gather(1, targets_C1)[:, 0]
    if into_CH is not None:
        grad_CV = output.bend.back_(_unit_gradient(log_probs_CV, targets_C1), logits_CV)
        torch.mm(grad_CV.to(hidden_CH.dtype), output.weight_VH, out=into_CH)
    return found


def _weighed(
    output: Output, hidden_CH: Tensor, targets_C1: Tensor, weights_C1: Tensor, grad_bias: Tensor | None
) -> Tensor:
    """Return the weighed gradient of a chunk's logits [C, V] in the model's type; adds that of the bias."""
    logits_CV, log_probs_CV = _log_softmax(output, hidden_CH)
    grad_CV = _unit_gradient(log_probs_CV, targets_C1).mul_(weights_C1)
    grad_CV = output.bend.back_(grad_CV, logits_CV)
    if grad_bias is not None:
        grad_bias += grad_CV.sum(0)
    return grad_CV.to(hidden_CH.dtype)


def _log_softmax(output: Output, hidden_CH: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits and their log-softmax [C, V]."""
    logits_CV = output.logits(hidden_CH)
    return logits_CV, torch.log_softmax(logits_CV, dim=-1, dtype=working_type(hidden_CH))


def _unit_gradient(log_probs_CV: Tensor, targets_C1: Tensor) -> Tensor:
    """Return d log p / d logits [C, V], 1 at the target minus the probabilities; overwrites what it is given."""
    grad_CV = log_probs_CV.exp_().neg_()
    return grad_CV.scatter_add_(1, targets_C1, torch.ones_like(targets_C1, dtype=grad_CV.dtype))
