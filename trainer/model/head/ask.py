"""What can be asked of a model for packed text. An objective that needs something else adds a class beside these.

Answers are tensors or tuples of tensors: the hooks by which DeepSpeed gathers weights look into nothing else.

Shapes: N tokens of a micro-batch, H hidden, V vocabulary, K chosen positions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from trainer.model.head.bend import NO_BEND, Bend

IGNORE = -100
"""Label of a position without a supervised target."""

A = TypeVar("A", covariant=True)


@dataclass(frozen=True, slots=True)
class Output:
    """The output layer as it is while its weight is gathered."""

    weight_VH: Tensor
    bias_V: Tensor | None
    chunk_tokens: int
    """Rows of logits that may exist at once where they are not what is asked for."""
    bend: Bend = NO_BEND

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits [..., V] of hidden states [..., H]."""
        return self.bend.of(nn.functional.linear(hidden, self.weight_VH, self.bias_V))


class Ask(Generic[A]):
    """A question to the model; its type is that of the answer."""


class HeadAsk(Ask[A], ABC):
    """A question that the output layer answers from the hidden states."""

    @abstractmethod
    def answer(self, hidden: Tensor, output: Output) -> A:
        """Answer from hidden states [..., H]. Called inside the output layer, so under every ZeRO stage."""


@dataclass(frozen=True, slots=True)
class Logits(HeadAsk[Tensor]):
    """Ask for logits [..., V], or those [K, V] of some positions of the flattened batch."""

    keep_K: Tensor | None = None

    def answer(self, hidden: Tensor, output: Output) -> Tensor:
        """Take the logits."""
        return output.logits(
            hidden if self.keep_K is None else hidden.reshape(-1, hidden.shape[-1])[self.keep_K]
        )


@dataclass(frozen=True, slots=True)
class OwnLogits(Ask[Tensor]):
    """Ask for the logits of the model's own forward, which all other questions go round."""


@dataclass(frozen=True, slots=True)
class Scores(Ask[Tensor]):
    """Ask for what the score head says at some positions of the flattened batch [K]."""

    rows_K: Tensor


def working_type(tensor: Tensor) -> torch.dtype:
    """Return the type that sums are made in: float32, or float64 for a model in float64."""
    return torch.promote_types(tensor.dtype, torch.float32)
