"""The output layer of a causal model, which answers questions instead of handing out logits.

Being the model's own `lm_head` module it works under every ZeRO stage: the hooks that gather its weight fire as for any
layer.

Shapes: H hidden, V vocabulary.
"""

from __future__ import annotations

import logging
from typing import Any, cast

import torch
from torch import Tensor, nn

from trainer.errors import ModelError
from trainer.model.head.ask import HeadAsk, Output
from trainer.model.head.bend import Bend, find_bend
from trainer.model.scorer import output_layer

_LOG = logging.getLogger(__name__)


class LossHead(nn.Linear):
    """An `lm_head` that answers; made by `install_loss_head`."""

    chunk_tokens: int
    bend: Bend
    rows: nn.Parameter | None
    """Rows of new tokens, which stand beside the frozen matrix; from `first_id` on."""
    first_id: int

    def forward(self, input: Tensor, ask: HeadAsk[Any] | None = None) -> Any:
        """Answer from hidden states [..., H]; without a question, as when the model calls it, return logits.

        The model itself changes those after this, so then they are what the matrix gives.
        """
        if ask is None:
            return nn.functional.linear(input, self._whole_weight(), self.bias)
        return ask.answer(input, Output(self._whole_weight(), self.bias, self.chunk_tokens, self.bend))

    def _whole_weight(self) -> Tensor:
        rows = getattr(self, "rows", None)
        if rows is None:
            return self.weight
        return torch.cat([self.weight[: self.first_id], rows, self.weight[self.first_id + len(rows) :]])


def install_loss_head(model: nn.Module, chunk_tokens: int) -> None:
    """Turn the model's output layer into a LossHead, in place; parameters and hooks stay.

    Raises:
        ModelError: The output layer is not a plain linear layer, or logits are changed after it in a way that is not
            known. That the outcome is the model's own logits is proved when it runs.
    """
    head = output_layer(model)
    if type(head) is not nn.Linear:
        raise ModelError(
            f"The output layer must be a plain linear layer, but is {type(head).__name__} instead. "
            "This architecture is not supported yet."
        )
    bend = find_bend(model)
    head.__class__ = LossHead
    installed = cast(LossHead, head)
    installed.chunk_tokens, installed.bend = chunk_tokens, bend
    if not bend.is_none:
        _LOG.info("Logits are %s after the output layer, as the model's own forward does.", bend.describe())


def head_of(module: nn.Module) -> LossHead:
    """Return the output layer of a model in which it was installed."""
    return next(part for part in module.modules() if isinstance(part, LossHead))
