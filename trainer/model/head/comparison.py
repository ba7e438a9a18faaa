"""How a teacher's distribution is compared with the model's, over its K most likely tokens and the rest as one outcome.

With p of the teacher and q of the model over the same K+1 outcomes, and m = b p + (1 - b) q their mixture:

    forward   sum p (log p - log q)                                             g = p
    reverse   sum q (log q - log p)                                             g = -q (log q - log p)
    jsd       b sum p (log p - log m) + (1 - b) sum q (log q - log m)           g = -(1 - b) q (log q - log m)

g is minus the derivative with respect to log q, up to a multiple of q, which changes no gradient of logits. By the
data-processing inequality each is at most what it is over the whole vocabulary. Source: arXiv:2306.13649, equation 1.

Shapes: R positions, K tokens of a position, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.config.distill import DivergenceKind

LEAST_MASS = 1e-9
"""Mass below this is rounding; its logarithm would dominate. What is raised to it has no gradient."""
LEAST_LOG = math.log(LEAST_MASS)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is compared, and what it counts beside the cross-entropy of the same positions."""

    divergence: DivergenceKind = DivergenceKind.forward
    share: float = 0.5
    """The teacher's, of the mixture of `jsd`; strictly between 0 and 1."""
    temperature: float = 1.0
    """Divides the logits of both."""
    num_ids: int | None = None
    """Ids that both models have, the first of each vocabulary; others are masked out of both. None: all."""
    cross_entropy: float = 1.0
    """What the cross-entropy of a position counts in the loss."""

    @property
    def is_plain(self) -> bool:
        """Tell whether it is the forward KL of whole vocabularies beside the whole cross-entropy."""
        return self == Comparison()

    def seen(self, logits: Tensor) -> Tensor:
        """Return what is compared of logits [..., V]."""
        if self.num_ids is not None:
            logits = logits[..., : self.num_ids]
        return logits if self.temperature == 1 else logits / self.temperature

    def back(self, grad_RV: Tensor, vocab_size: int) -> Tensor:
        """Return the gradient of logits, of that of what is seen of them."""
        if self.temperature != 1:
            grad_RV = grad_RV / self.temperature
        missing = vocab_size - grad_RV.shape[1]
        return grad_RV if not missing else torch.nn.functional.pad(grad_RV, (0, missing))


PLAIN = Comparison()


def compared(
    how: Comparison, base_RK: Tensor, base_rest_R: Tensor, model_RK: Tensor, rest_R: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the reverse or mixed divergence in nats [R], and g of the tokens [R, K] and of the rest [R].

    Args:
        base_RK: The teacher's log-probabilities of its tokens.
        base_rest_R: Its mass outside them.
        model_RK: The model's log-probabilities of the same tokens.
        rest_R: Its mass outside them.
    """
    log_p = torch.cat([base_RK, base_rest_R.clamp(min=LEAST_MASS).log().unsqueeze(1)], dim=1)
    log_q = torch.cat([model_RK, rest_R.clamp(min=LEAST_MASS).log().unsqueeze(1)], dim=1)
    q = log_q.exp()
    if how.divergence is DivergenceKind.reverse:
        parts = pulls = q * (log_q - log_p)
    else:
        assert how.divergence is DivergenceKind.jsd, "the forward KL has a function of its own"
        kept = 1.0 - how.share
        log_m = torch.logaddexp(log_p + math.log(how.share), log_q + math.log(kept))
        pulls = kept * q * (log_q - log_m)
        parts = how.share * log_p.exp() * (log_p - log_m) + pulls
    pull_R = torch.where(rest_R >= LEAST_MASS, -pulls[:, -1], 0.0)
    return parts.sum(dim=-1), -pulls[:, :-1], pull_R
