"""Which part of a causal model makes its hidden states."""

from __future__ import annotations

import inspect
from typing import Any

from trainer.errors import ModelError


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
        "embeddings alone. Name another model.path: this architecture is not supported yet."
    )


def cache_argument(body: Any) -> str:
    """Return the name under which a body takes a cache of what it has read.

    Many bodies take any name, and read nothing under most.

    Raises:
        ModelError: Under none that is known.
    """
    named = inspect.signature(type(body).forward).parameters
    for name in ("past_key_values", "cache"):
        if name in named:
            return name
    raise ModelError(
        f"A model must take a cache as `past_key_values` or `cache` to generate text, but {type(body).__name__} takes "
        f"{', '.join(name for name in named if 'cache' in name) or 'none'} instead. Generate with the exported model."
    )


def keeps_state_alone(body: Any) -> bool:
    """Tell whether a body has no attention: it takes no places of tokens, and what it has read is no keys by name."""
    named = inspect.signature(type(body).forward).parameters
    return "position_ids" not in named and "past_key_values" not in named
