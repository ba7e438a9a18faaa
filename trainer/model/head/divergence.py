"""Divergence from a teacher, over its K most likely tokens and the rest as one outcome: forward KL here.

With p of the base and q of the model, r = 1 - sum p_k and s = 1 - sum q_k what the rest of the vocabulary has:

    KL = sum_k p_k (log p_k - log q_k) + r (log r - log s)

Others are in comparison.py, each with g in the place of p and r. By the data-processing inequality a lower bound of the
whole sum, and close to it, because little mass is in the rest. Its gradient with respect to the logits, with
W = sum p_k + r:

    q_j W - p_j         for a token of the K
    q_j (W - r / s)     for any other

Shapes: N tokens of a micro-batch, R positions of it, K tokens of a position, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainer.config.distill import DivergenceKind
from trainer.model.head.comparison import LEAST_MASS, PLAIN, Comparison, compared


@dataclass(frozen=True, slots=True)
class TopTokens:
    """What the base model says of some supervised positions of a micro-batch, on the model's device.

    Shapes: rows_R int64, ascending in [0, N); ids_RK int32 or int64; log_probs_RK floating, in nats.
    """

    rows_R: Tensor
    host_rows_R: npt.NDArray[np.int64]
    """The same rows on the host, so that cutting them into chunks waits for no device."""
    ids_RK: Tensor
    log_probs_RK: Tensor
    beta: float
    """What a nat of divergence weighs against a nat of cross-entropy."""
    how: Comparison = PLAIN
    log_rest_R: Tensor | None = None
    """Logarithm of the teacher's mass outside its tokens; None: 1 minus their sum."""

    def within(self, start: int, stop: int) -> TopTokens | None:
        """Return the positions in [start, stop), counted from `start`; None if there are none."""
        first, last = np.searchsorted(self.host_rows_R, (start, stop)).tolist()
        if first == last:
            return None
        part = slice(first, last)
        return TopTokens(
            self.rows_R[part] - start,
            self.host_rows_R[part] - start,
            self.ids_RK[part],
            self.log_probs_RK[part],
            self.beta,
            self.how,
            None if self.log_rest_R is None else self.log_rest_R[part],
        )

    def says(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the teacher's log-probabilities [R, K] and its mass outside them [R], at least LEAST_MASS.

        Where the rest was kept too, all of it sums up to 1: stored numbers are rounded.
        """
        base_RK = self.log_probs_RK.to(dtype)
        if self.log_rest_R is None:
            return base_RK, (1.0 - base_RK.exp().sum(dim=-1)).clamp(min=LEAST_MASS)
        log_rest_R = self.log_rest_R.to(dtype)
        total_R = torch.logaddexp(base_RK.logsumexp(dim=-1), log_rest_R)
        return base_RK - total_R.unsqueeze(1), (log_rest_R - total_R).exp().clamp(min=LEAST_MASS)


def divergence(
    base_RK: Tensor,
    model_RK: Tensor,
    model_rest_R: Tensor | None = None,
    base_rest_R: Tensor | None = None,
) -> Tensor:
    """Return KL(base || model) in nats at each position, from the log-probabilities of the base's top tokens.

    Args:
        model_rest_R: The model's mass outside them, where it is known better than as 1 minus their sum.
        base_rest_R: Likewise the base's.
    """
    if model_rest_R is None:
        model_rest_R = 1.0 - model_RK.exp().sum(dim=-1)
    kl_R = (base_RK.exp() * (base_RK - model_RK)).sum(dim=-1)
    if base_rest_R is None:
        base_rest_R = (1.0 - base_RK.exp().sum(dim=-1)).clamp(min=LEAST_MASS)
    return kl_R + base_rest_R * (base_rest_R / model_rest_R.clamp(min=LEAST_MASS)).log()


def divergence_step(logits_RV: Tensor, base: TopTokens, needs_grad: bool) -> tuple[Tensor, Tensor | None]:
    """Return (divergence [R], d divergence / d logits [R, V]), without `beta`, from logits of at least float32."""
    how, ids_RK = base.how, base.ids_RK.long()
    base_RK, base_rest_R = base.says(logits_RV.dtype)
    seen_RV = how.seen(logits_RV)
    log_total_R1 = seen_RV.logsumexp(dim=-1, keepdim=True)
    model_RK = seen_RV.gather(1, ids_RK) - log_total_R1
    # Summed by itself: 1 minus the sum of the K would have only rounding left where they hold nearly all.
    others_RV = seen_RV.scatter(1, ids_RK, float("-inf")).sub_(log_total_R1)
    rest_R = others_RV.logsumexp(dim=-1).exp()
    if how.divergence is DivergenceKind.forward:
        found_R = divergence(base_RK, model_RK, rest_R, base_rest_R)
        pull_RK = base_RK.exp()
        pull_R = torch.where(rest_R >= LEAST_MASS, base_rest_R, 0.0)
    else:
        found_R, pull_RK, pull_R = compared(how, base_RK, base_rest_R, model_RK, rest_R)
    if not needs_grad:
        return found_R, None
    total_R1 = (pull_RK.sum(dim=-1) + pull_R).unsqueeze(1)
    grad_RV = others_RV.exp_().mul_(total_R1 - (pull_R / rest_R.clamp(min=LEAST_MASS)).unsqueeze(1))
    grad_RV = grad_RV.scatter_(1, ids_RK, model_RK.exp() * total_R1 - pull_RK)
    return found_R, how.back(grad_RV, logits_RV.shape[1])
