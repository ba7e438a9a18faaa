"""Top tokens of a made-up base, and the KL to them by plain autograd; for every test of the loss head."""

import torch

from trainer.model.head.comparison import LEAST_MASS
from trainer.model.head.divergence import TopTokens


def top_tokens(base_logits, rows, num_top, beta, device="cpu"):
    """Return the base's top tokens at some rows of a micro-batch. base_logits are those rows' [R, V]."""
    log_probs, ids = base_logits.log_softmax(dim=-1).topk(num_top, dim=-1)
    index = torch.tensor(rows)
    return TopTokens(
        index.to(device), index.numpy(), ids.int().to(device), log_probs.detach().to(device), beta
    )


def plain_divergence(logits, base):
    """KL(base || model) at each row with a base, every step left to autograd. logits are all rows' [N, V]."""
    model = logits[base.rows_R].log_softmax(dim=-1)
    ids, log_p = base.ids_RK.long(), base.log_probs_RK.to(model.dtype)
    inside = torch.zeros_like(model, dtype=torch.bool).scatter(1, ids, True)
    kl = (log_p.exp() * (log_p - model.gather(1, ids))).sum(-1)
    base_rest = (1 - log_p.exp().sum(-1)).clamp(min=LEAST_MASS)
    model_rest = model.exp().masked_fill(inside, 0.0).sum(-1).clamp(min=LEAST_MASS)
    return kl + base_rest * (base_rest / model_rest).log()
