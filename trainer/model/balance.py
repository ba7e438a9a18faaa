"""The routers' own loss, which evens out the use of experts, worked out as the model's transformers class does.

It is a mean over the tokens of a micro-batch and over layers, so a step's is the mean over its micro-batches, as in
transformers. Padding is left out.

Shapes: N tokens of a micro-batch.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from trainer.errors import ModelError

FUNCTION = "load_balancing_loss_func"
SIZES = ("num_experts", "num_experts_per_tok")


class Balance:
    """Adds up the routers' losses of the micro-batches that a model is asked about with a gradient."""

    def __init__(self, loss: Callable[..., Any], num_experts: int, num_chosen: int, weight: float) -> None:
        """Take the function of the model's class, what it is told, and the weight of the loss."""
        self._loss, self._num_experts, self._num_chosen, self._weight = loss, num_experts, num_chosen, weight
        self._waiting: Tensor | None = None
        self._seen: Tensor | None = None
        self._num_seen = 0

    def add(self, router_logits: Any, is_token_N: Tensor | None) -> None:
        """Work out the loss of a micro-batch from the logits of its routers, one tensor a layer.

        Raises:
            ModelError: The model gave no logits of routers.
        """
        if not isinstance(router_logits, tuple) or not router_logits:
            raise ModelError(
                "This model must give the logits of its routers for `output_router_logits`, but gives none. Set it to "
                "false in a copy of the folder to train without the routers' loss."
            )
        found = self._loss(router_logits, self._num_experts, self._num_chosen, is_token_N)
        self._waiting = found if self._waiting is None else self._waiting + found
        value = found.detach().double()
        self._seen = value if self._seen is None else self._seen + value
        self._num_seen += 1

    def take(self) -> Tensor | None:
        """Return the weighted loss since the last call, with a gradient; None where nothing was asked."""
        found, self._waiting = self._waiting, None
        return None if found is None else self._weight * found

    @contextlib.contextmanager
    def unseen(self) -> Iterator[None]:
        """Leave what `take_seen` returns as it is, whatever is asked meanwhile."""
        before = self._seen, self._num_seen
        try:
            yield
        finally:
            self._waiting = None
            self._seen, self._num_seen = before

    def take_seen(self) -> tuple[float, int]:
        """Return the sum of the losses since the last call, without weight, and their count. Waits for the device."""
        found, count = self._seen, self._num_seen
        self._seen, self._num_seen = None, 0
        return (0.0 if found is None else float(found)), count


def balance_of(model: Any, weight: float) -> Balance:
    """Return what works out the routers' loss of a model.

    Raises:
        ModelError: Its class has no such loss.
    """
    loss = getattr(sys.modules[type(model).__module__], FUNCTION, None)
    num_experts, num_chosen = (getattr(model, key, None) for key in SIZES)
    if loss is None or not (isinstance(num_experts, int) and isinstance(num_chosen, int)):
        raise ModelError(
            f"`output_router_logits` must be false for {type(model).__name__}, but is true instead: its class says not "
            "how the routers' loss is worked out. To train without that loss, set it to false in a copy of the folder."
        )
    return Balance(loss, num_experts, num_chosen, weight)
