"""The output layer of a causal model, which answers questions instead of handing out logits.

Being the model's own `lm_head` module it works under every ZeRO stage: the hooks that gather its weight fire as for any
layer.

Shapes: H hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from trainer.errors import ModelError
from trainer.model.head.ask import HeadAsk, Output


class LossHead(nn.Linear):
    """An `lm_head` that answers; made by `install_loss_head`."""

    chunk_tokens: int
    rows: nn.Parameter | None
    """Rows of new tokens, which stand beside the frozen matrix; from `first_id` on."""
    first_id: int

    def forward(self, input: Tensor, ask: HeadAsk[Any] | None = None) -> Any:
        """Answer from hidden states [..., H]; without a question, as when the model calls it, return logits."""
        output = Output(self._whole_weight(), self.bias, self.chunk_tokens)
        return output.logits(input) if ask is None else ask.answer(input, output)

    def _whole_weight(self) -> Tensor:
        rows = getattr(self, "rows", None)
        if rows is None:
            return self.weight
        return torch.cat([self.weight[: self.first_id], rows, self.weight[self.first_id + len(rows) :]])


def install_loss_head(model: nn.Module, chunk_tokens: int) -> None:
    """Turn the model's output layer into a LossHead, in place; parameters and hooks stay.

    Raises:
        ModelError: The output layer is not a plain linear layer. That nothing changes logits after it is proved when
            the model runs.
    """
    head = cast(Any, model).get_output_embeddings()
    if type(head) is not nn.Linear:
        raise ModelError(
            f"The output layer must be a plain linear layer, but is {type(head).__name__} instead. "
            "This architecture is not supported yet."
        )
    head.__class__ = LossHead
    cast(LossHead, head).chunk_tokens = chunk_tokens
