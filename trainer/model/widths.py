"""How wide attention is, from a configuration whose layers may differ.

Gemma 4 has wider heads in its full layers. transformers 5.24 holds such a size once a layer, and raises where it is
asked for of all.
"""

from __future__ import annotations

from typing import Any


def attention_widths(config: Any) -> tuple[float, float] | None:
    """Return the widths of queries and of keys, all heads together, as means over layers; None where none are said."""
    layers = config.per_layer_config if getattr(config, "is_heterogeneous", False) else [config]
    found = [_of_layer(layer) for layer in layers]
    if not found or not all(queries and keys for queries, keys in found):
        return None
    return sum(queries for queries, _ in found) / len(found), sum(keys for _, keys in found) / len(found)


def _of_layer(config: Any) -> tuple[int, int]:
    num_heads = getattr(config, "num_attention_heads", None)
    if not isinstance(num_heads, int) or num_heads < 1:
        return 0, 0
    head_dim = getattr(config, "head_dim", None) or (getattr(config, "hidden_size", None) or 0) // num_heads
    return num_heads * head_dim, (getattr(config, "num_key_value_heads", None) or num_heads) * head_dim
