"""The causal language-modelling objective: a micro-batch in, (loss sum, per-token loss) out.

Wraps the model so that the loss is made inside the engine's forward. Other objectives stand beside it.

Shapes: B packs, T sequence, N = B*T, K chosen positions.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from trainer.errors import ModelError
from trainer.model.head.divergence import TopTokens
from trainer.model.masks import layer_masks


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
        is_whole: bool = False,
        **inputs: Any,
    ) -> Any:
        """Return (loss_sum, nll_N), or logits when there are no labels.

        Args:
            labels: Next tokens [B, T]; -100 is not supervised.
            base: As LossHead has it.
            num_top: As LossHead has it.
            keep_K: Positions of the flattened batch, in [0, N), whose logits are wanted: [K, V] instead of [B, T, V].
            is_whole: Return the logits [B, T, V] of the model's own forward, which this one goes round.
            inputs: What the model takes; a cache in `past_key_values` is filled in place. A mask of pairs
                becomes one for each kind of layer.
        """
        lm = cast(Any, self.lm)
        use_cache = inputs.get("past_key_values") is not None
        if is_whole:
            return lm(use_cache=use_cache, **inputs).logits
        num_added = 0
        if self.virtual is not None:
            inputs, num_added = self.virtual(inputs)
        mask = inputs.get("attention_mask")
        if mask is not None and mask.ndim == 4:
            inputs["attention_mask"] = layer_masks(lm.config, mask, inputs["position_ids"])
        hidden = body_of(lm)(use_cache=use_cache, **inputs).last_hidden_state[:, num_added:]
        head = lm.get_output_embeddings()
        if labels is not None:
            return head(hidden, labels.reshape(-1), base, num_top)
        return head(hidden if keep_K is None else hidden.reshape(-1, hidden.shape[-1])[keep_K])


def body_of(lm: Any) -> Any:
    """Return the part of a causal model that makes hidden states: the model without its head.

    Of some classes `base_model` is the model itself; there it is the child that holds the input embeddings.

    Raises:
        ModelError: No part does.
    """
    if lm.base_model is not lm:
        return lm.base_model
    embed = lm.get_input_embeddings()
    for child in lm.children():
        if child is not embed and any(module is embed for module in child.modules()):
            return child
    raise ModelError(
        f"The body and the head of {type(lm).__name__} must be two modules, but no part of it holds the input "
        "embeddings alone. This architecture is not supported."
    )
