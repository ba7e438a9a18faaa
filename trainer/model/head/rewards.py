"""What a reward model says of positions. Shapes: N positions of the flattened batch, K chosen ones, H hidden."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from trainer.errors import ModelError
from trainer.model.head.ask import HeadAsk, Output, working_type
from trainer.model.head.head import head_of


@dataclass(frozen=True, slots=True)
class Rewards(HeadAsk[Tensor]):
    """Ask for the scores [K] at some positions of the flattened batch, float32 or wider, differentiable.

    Products are made in float32 whatever the model computes in: a bf16 score has three digits, and pairs would tie.
    """

    rows_K: Tensor

    def answer(self, hidden: Tensor, output: Output) -> Tensor:
        """Score the positions.

        Raises:
            ModelError: The output layer is that of a language model.
        """
        if output.weight_VH.shape[0] != 1:
            raise ModelError(
                f"Scores must be asked of a reward model, but this has {output.weight_VH.shape[0]} outputs instead. "
                "Set objective=reward."
            )
        hidden_KH = hidden.reshape(-1, hidden.shape[-1])[self.rows_K]
        dtype = working_type(hidden_KH)
        return nn.functional.linear(hidden_KH.to(dtype), output.weight_VH.to(dtype))[:, 0]


def is_scorer(module: Any) -> bool:
    """Tell whether the output layer that was installed in a model gives one number: a reward model."""
    return head_of(module).out_features == 1
