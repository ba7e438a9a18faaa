"""The causal language-modelling objective: a micro-batch in, (loss sum, per-token loss) out.

Wraps the model so that the loss is made inside the engine's forward. Other objectives stand beside it.

Shapes: B packs, T sequence, N = B*T.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from trainer.objective.divergence import TopTokens


class CausalLM(nn.Module):
    """A Hugging Face causal model with a LossHead, called with packed inputs."""

    def __init__(self, lm: nn.Module) -> None:
        """Take the model, whose head is a LossHead."""
        super().__init__()
        self.lm = lm

    def forward(
        self,
        labels: Tensor | None = None,
        base: TopTokens | None = None,
        num_top: int | None = None,
        **inputs: Any,
    ) -> Any:
        """Return (loss_sum, nll_N), or logits when there are no labels; `base` and `num_top` as LossHead has them."""
        lm = cast(Any, self.lm)
        hidden = lm.base_model(use_cache=False, **inputs).last_hidden_state
        head = lm.get_output_embeddings()
        if labels is None:
            return head(hidden)
        return head(hidden, labels.reshape(-1), base, num_top)


def block_mask(segments_BT: Tensor) -> Tensor:
    """Return the mask under which a token sees itself and earlier tokens of its own document.

    Shapes: [B, 1, T, T] bool, True where attention is allowed.
    """
    same = segments_BT[:, None, :, None] == segments_BT[:, None, None, :]
    seq_len = segments_BT.shape[1]
    causal = torch.ones(seq_len, seq_len, dtype=torch.bool, device=segments_BT.device).tril()
    return same & causal
