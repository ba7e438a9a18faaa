"""What generation needs of a loaded model: an empty key-value cache, its end tokens and its context."""

from __future__ import annotations

from typing import Any

from transformers import DynamicCache


def empty_cache(hf_config: Any) -> Any:
    """Return a key-value cache that the model fills in place, given to it as `past_key_values`."""
    return DynamicCache(config=hf_config)


def end_tokens(model: Any) -> frozenset[int]:
    """Return the tokens that end an answer by the model's own files: some tokenizers name only one of several."""
    found: list[Any] = []
    for config in (getattr(model, "generation_config", None), model.config):
        tokens = getattr(config, "eos_token_id", None)
        found += tokens if isinstance(tokens, list) else [tokens]
    return frozenset(int(token) for token in found if token is not None)


def context_length(hf_config: Any) -> int | None:
    """Return the longest input the model was made for, in tokens; None where it does not say."""
    longest = getattr(hf_config, "max_position_embeddings", None)
    return None if longest is None else int(longest)
