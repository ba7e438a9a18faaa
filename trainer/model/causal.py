"""A Hugging Face causal model as the engine holds it: packed inputs and a question in, the answer out.

Shapes: B packs, T sequence, K chosen positions.
"""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from trainer.errors import ModelError
from trainer.model.body import body_of
from trainer.model.head.ask import Ask, OwnLogits, Scores
from trainer.model.masks import layer_masks


class CausalLM(nn.Module):
    """A causal model whose output layer is a LossHead."""

    def __init__(
        self, lm: nn.Module, virtual: nn.Module | None = None, scores: nn.Module | None = None
    ) -> None:
        """Take the model, what puts virtual tokens before its documents, and a layer [H -> 1] that scores positions."""
        super().__init__()
        self.lm = lm
        self.virtual = virtual
        self.scores = scores

    def forward(self, ask: Ask[Any], **inputs: Any) -> Any:
        """Answer a question about packed text; `Engine.forward` gives the answer its type.

        Args:
            inputs: What the model takes; a cache in `past_key_values` is filled in place. A mask of pairs
                becomes one for each kind of layer.
        Raises:
            ModelError: Scores are asked of a model without a score head.
        """
        lm = cast(Any, self.lm)
        use_cache = inputs.get("past_key_values") is not None
        if isinstance(ask, OwnLogits):
            return lm(use_cache=use_cache, **inputs).logits
        num_added = 0
        if self.virtual is not None:
            inputs, num_added = self.virtual(inputs)
        mask = inputs.get("attention_mask")
        if mask is not None and mask.ndim == 4:
            dtype = lm.get_input_embeddings().weight.dtype
            inputs["attention_mask"] = layer_masks(lm.config, mask, inputs["position_ids"], dtype)
        hidden = body_of(lm)(use_cache=use_cache, **inputs).last_hidden_state[:, num_added:]
        if isinstance(ask, Scores):
            if self.scores is None:
                raise ModelError(
                    "This model must have a score head to score positions, but has none instead."
                )
            return self.scores(hidden.reshape(-1, hidden.shape[-1])[ask.rows_K])[:, 0]
        return lm.get_output_embeddings()(hidden, ask=ask)
