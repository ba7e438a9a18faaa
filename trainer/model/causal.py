"""A Hugging Face causal model as the engine holds it: packed inputs and a question in, the answer out.

Shapes: B packs, T sequence, K chosen positions.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from trainer.errors import ModelError
from trainer.model.balance import Balance
from trainer.model.body import body_of
from trainer.model.head.ask import Ask, OwnLogits, Scores
from trainer.model.masks import layer_masks


class CausalLM(nn.Module):
    """A causal model whose output layer is a LossHead."""

    def __init__(
        self,
        lm: nn.Module,
        virtual: nn.Module | None = None,
        scores: nn.Module | None = None,
        balance: Balance | None = None,
    ) -> None:
        """Take the model, what puts virtual tokens before its documents, and a layer [H -> 1] that scores positions.

        Args:
            balance: Works out the routers' loss of what is asked with a gradient; None: it is no part of training.
        """
        super().__init__()
        self.lm = lm
        self.virtual = virtual
        self.scores = scores
        self.balance = balance

    def forward(self, ask: Ask[Any], **inputs: Any) -> Any:
        """Answer a question about packed text; `Engine.forward` gives the answer its type.

        Args:
            inputs: What the model takes; a cache in `past_key_values` is filled in place. A mask of pairs
                becomes one for each kind of layer. `is_token_N` tells the routers' loss what is no padding.
        Raises:
            ModelError: Scores are asked of a model without a score head.
        """
        lm = cast(Any, self.lm)
        is_token_N = inputs.pop("is_token_N", None)
        use_cache = inputs.get("past_key_values") is not None
        if self.balance is not None:
            inputs["output_router_logits"] = torch.is_grad_enabled() and not isinstance(ask, OwnLogits)
        if isinstance(ask, OwnLogits):
            return lm(use_cache=use_cache, **inputs).logits
        num_added = 0
        if self.virtual is not None:
            inputs, num_added = self.virtual(inputs)
        mask = inputs.get("attention_mask")
        if mask is not None and mask.ndim == 4:
            dtype = lm.get_input_embeddings().weight.dtype
            inputs["attention_mask"] = layer_masks(lm.config, mask, inputs["position_ids"], dtype)
        found = body_of(lm)(use_cache=use_cache, **inputs)
        if self.balance is not None and torch.is_grad_enabled():
            self.balance.add(found.router_logits, is_token_N)
        hidden = found.last_hidden_state[:, num_added:]
        if isinstance(ask, Scores):
            if self.scores is None:
                raise ModelError(
                    "This model must have a score head to score positions, but has none instead."
                )
            return self.scores(hidden.reshape(-1, hidden.shape[-1])[ask.rows_K])[:, 0]
        return lm.get_output_embeddings()(hidden, ask=ask)
