"""Bytes of the loss head: logits of a chunk of rows, and their gradients. Pure, counted over the code's tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainer.forecast.activations import bend_bytes
from trainer.forecast.shapes import DecoderShape

if TYPE_CHECKING:
    from trainer.forecast.memory import RunShape, Weights

_COMPARED_ROWS, _COMPARED_BYTES = 512, 20
"""Rows that a divergence is worked out of at once (model/head/nll.py), and the bytes of each logit meanwhile: five of
float32, counted in the code and not measured."""


@dataclass(frozen=True, slots=True)
class HeadBytes:
    """Of three moments of a micro-batch."""

    in_forward: float
    in_backward: float
    after: float


def head_bytes(shape: DecoderShape, run: RunShape, weights: Weights) -> HeadBytes:
    """Return the bytes of the loss head (model/head/head.py), whose gradients are made in forward."""
    if run.asks_log_probs and shape.num_scores is None:
        return _asked(shape, run, weights)
    e, hidden = run.element_bytes, shape.hidden_size
    rows = min(run.loss_chunk_tokens, run.num_tokens)
    states = 2 * run.num_tokens * hidden * e  # its input and the gradient of it
    logits = rows * shape.num_outputs * (e + (bend_bytes(shape, e) if run.asks_base else 0))
    if run.distils:  # gradients of all rows, and some rows at a time in float32
        logits += shape.num_outputs * (rows * e + min(rows, _COMPARED_ROWS) * _COMPARED_BYTES)
    matrix = shape.num_outputs * hidden if weights.is_full else 0
    summed = matrix * (e if run.num_tokens <= run.loss_chunk_tokens else 4)
    cast = matrix * e if summed > matrix * e else 0
    # Stage 3 reduces the head's gradient into its partition at once.
    return HeadBytes(states + logits + summed, states + summed + cast, states / 2 + matrix * e)


def _asked(shape: DecoderShape, run: RunShape, weights: Weights) -> HeadBytes:
    """Return the bytes of a head that gives log-probabilities with a gradient (model/head/log_probs.py).

    As if all tokens were those of answers: how many of a pack are, its pairs decide, and a chunk is full of them or
    not. torch takes the logarithm of logits in bf16 from a copy in float32 (aten/native/SoftMax.cpp has another way
    for fp16 alone), so both are there at once; then their gradient beside the logits, and that rounded. A frozen head
    makes the gradient in forward and keeps it, one that trains makes all of it again in backward, with a product of
    the size of its weights beside their sum in float32.
    """
    e, hidden = run.element_bytes, shape.hidden_size
    rows = min(run.loss_chunk_tokens, run.num_tokens)
    states = 2 * run.num_tokens * hidden * e  # its input, and the gradient of that
    copied = 4 if e < 4 else 0
    logits = rows * shape.num_outputs * (e + copied + 4)
    if not weights.is_full:
        return HeadBytes(states + logits, 1.5 * states, states / 2)
    matrix = shape.num_outputs * hidden
    return HeadBytes(states + logits, states + logits + matrix * (4 + e), states / 2 + matrix * e)
