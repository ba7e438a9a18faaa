"""Bytes of the loss head: logits of a chunk of rows, and their gradients. Pure, counted over the code's tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainer.forecast.activations import bend_bytes, log_prob_bytes
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
    if run.asks_log_probs:
        return _log_prob_head(shape, run, weights)
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


def _log_prob_head(shape: DecoderShape, run: RunShape, weights: Weights) -> HeadBytes:
    """Return the bytes of log-probabilities (model/head/log_probs.py), were all tokens learnt.

    How many of a pack are answers its pairs decide. A frozen matrix has the gradient of each log-probability made in
    forward, a copy as wide as the states, which is weighed in float32 in backward. For one that trains logits are made
    a second time, in backward, beside the sum of its gradient in float32, to which a chunk's own is added.
    """
    e, wide = run.element_bytes, run.num_tokens * shape.hidden_size
    logits = min(run.loss_chunk_tokens, run.num_tokens) * shape.num_outputs
    chunk = logits * log_prob_bytes(shape, e)
    if not weights.is_full:
        # 8: the copy, its product in float32, and that narrowed.
        return HeadBytes(3 * wide * e + chunk, 8 * wide, wide * e)
    matrix = shape.num_outputs * shape.hidden_size
    in_backward = 2 * wide * e + 4 * matrix + max(chunk, (matrix + logits) * e)
    return HeadBytes(2 * wide * e + chunk, in_backward, wide * e + matrix * e)
