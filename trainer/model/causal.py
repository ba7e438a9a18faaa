"""A Hugging Face causal model as the engine holds it: packed inputs and a question in, the answer out.

Shapes: B packs, T sequence, N positions of all packs, R rows of width W, H hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from trainer.errors import ModelError
from trainer.model.body import body_of, cache_argument
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
                becomes one for each kind of layer. Or `rows` and `place_N` of engine/model_inputs.py.
        Raises:
            ModelError: Scores are asked of a model without a score head.
        """
        lm = cast(Any, self.lm)
        use_cache = inputs.get("past_key_values") is not None
        if isinstance(ask, OwnLogits):
            return lm(use_cache=use_cache, **inputs).logits
        hidden = self._of_rows(**inputs) if "rows" in inputs else self._hidden(inputs, use_cache)
        if isinstance(ask, Scores):
            if self.scores is None:
                raise ModelError(
                    "This model must have a score head to score positions, but has none instead."
                )
            return self.scores(hidden.reshape(-1, hidden.shape[-1])[ask.rows_K])[:, 0]
        return lm.get_output_embeddings()(hidden, ask=ask)

    def _of_rows(self, rows: Sequence[Tensor], place_N: Tensor) -> Tensor:
        """Return hidden states [1, N, H] in the order of the packs, of rows [R, W] that the model sees one by one."""
        found = [self._hidden({"input_ids": tokens_RW}, use_cache=False).flatten(0, 1) for tokens_RW in rows]
        return torch.cat(found)[place_N][None]

    def _hidden(self, inputs: dict[str, Any], use_cache: bool) -> Tensor:
        """Return hidden states of what is given, those of virtual tokens apart."""
        lm, num_added = cast(Any, self.lm), 0
        if self.virtual is not None:
            inputs, num_added = self.virtual(inputs)
        mask = inputs.get("attention_mask")
        if mask is not None and mask.ndim == 4:
            dtype = lm.get_input_embeddings().weight.dtype
            inputs["attention_mask"] = layer_masks(lm.config, mask, inputs["position_ids"], dtype)
        body = body_of(lm)
        if use_cache:
            inputs[cache_argument(body)] = inputs.pop("past_key_values")
        hidden: Tensor = body(use_cache=use_cache, **inputs).last_hidden_state
        return hidden[:, num_added:]
