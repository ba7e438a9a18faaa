"""The causal language-modelling objective: a micro-batch in, (loss sum, per-token loss) out.

Wraps the model so that the loss is made inside the engine's forward. Other objectives stand beside it.

Shapes: B packs, T sequence, N = B*T, K chosen positions.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from trainer.objective.divergence import TopTokens


class CausalLM(nn.Module):
    """A Hugging Face causal model with a LossHead, called with packed inputs."""

    def __init__(self, lm: nn.Module, virtual: nn.Module | None = None) -> None:
        """Take the model, whose head is a LossHead, and what puts virtual tokens before its documents."""
        super().__init__()
        self.lm = lm
        self.virtual = virtual

    def forward(
        self,
        labels: Tensor | None = None,
        base: TopTokens | None = None,
        num_top: int | None = None,
        keep_K: Tensor | None = None,
        **inputs: Any,
    ) -> Any:
        """Return (loss_sum, nll_N), or logits when there are no labels.

        Args:
            labels: Next tokens [B, T]; -100 is not supervised.
            base: As LossHead has it.
            num_top: As LossHead has it.
            keep_K: Positions of the flattened batch, in [0, N), whose logits are wanted: [K, V] instead of [B, T, V].
            inputs: What the model takes; a cache in `past_key_values` is filled in place.
        """
        lm = cast(Any, self.lm)
        use_cache = inputs.get("past_key_values") is not None
        num_added = 0
        if self.virtual is not None:
            inputs, num_added = self.virtual(inputs)
        hidden = lm.base_model(use_cache=use_cache, **inputs).last_hidden_state[:, num_added:]
        head = lm.get_output_embeddings()
        if labels is not None:
            return head(hidden, labels.reshape(-1), base, num_top)
        return head(hidden if keep_K is None else hidden.reshape(-1, hidden.shape[-1])[keep_K])


def block_mask(segments_BT: Tensor) -> Tensor:
    """Return the mask under which a token sees itself and earlier tokens of its own document.

    Shapes: [B, 1, T, T] bool, True where attention is allowed.
    """
    same = segments_BT[:, None, :, None] == segments_BT[:, None, None, :]
    seq_len = segments_BT.shape[1]
    causal = torch.ones(seq_len, seq_len, dtype=torch.bool, device=segments_BT.device).tril()
    return same & causal
