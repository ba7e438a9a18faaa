"""How wide attention is, from a configuration whose layers may differ.

Gemma 4 has wider heads in its full layers. transformers 5.24 holds such a size once a layer, and raises where it is
asked for of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def attention_widths(config: Any) -> tuple[float, float] | None:
    """Return the widths of queries and of keys, all heads together, as means over layers; None where none are said."""
    found = [_of_layer(layer) for layer in _layers(config)]
    if not found or not all(queries and keys for queries, keys in found):
        return None
    return sum(queries for queries, _ in found) / len(found), sum(keys for _, keys in found) / len(found)


def head_dims(config: Any) -> tuple[int, ...]:
    """Return the sizes of heads that a configuration names, of each layer where they differ."""
    # Before transformers 5.24 a second key names the heads of global layers.
    found = {_head_dim(layer) for layer in _layers(config)} | {getattr(config, "global_head_dim", None)}
    return tuple(sorted(size for size in found if isinstance(size, int)))


def _layers(config: Any) -> Sequence[Any]:
    return config.per_layer_config if getattr(config, "is_heterogeneous", False) else [config]


def _head_dim(layer: Any) -> int | None:
    rope, rest = (getattr(layer, f"qk_{part}_head_dim", None) for part in ("rope", "nope"))
    if rope and rest:  # latent attention
        return int(rope + rest)
    return _plain(layer) or None


def _plain(layer: Any) -> int:
    """Return the size of heads that is named, or follows from their number; 0 for neither."""
    heads = getattr(layer, "num_attention_heads", None)
    width = getattr(layer, "hidden_size", None) or 0
    return getattr(layer, "head_dim", None) or (width // heads if isinstance(heads, int) and heads else 0)


def _of_layer(config: Any) -> tuple[int, int]:
    num_heads = getattr(config, "num_attention_heads", None)
    if not isinstance(num_heads, int) or num_heads < 1:
        return 0, 0
    head_dim = _plain(config)
    return num_heads * head_dim, (getattr(config, "num_key_value_heads", None) or num_heads) * head_dim
