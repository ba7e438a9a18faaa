"""Which architectures carry something from one document of a row to the next that no mask of pairs stops.

Known from the configuration and the class, before data is prepared and weights are loaded. That documents of a pack do
not see each other is proved when a run starts, of every model.
"""

from __future__ import annotations

from typing import Any

from trainer.model.lean import causal_class
from trainer.model.masks import CHUNKED, FULL, SLIDING

_NO_MEMORY = frozenset({*FULL, *SLIDING, *CHUNKED, "attention", "mlp", "moe", "dense", "sparse"})
"""Kinds of layers that see other tokens through a mask, or none."""


def carried_by(hf_config: Any) -> str | None:
    """Say what of an architecture carries something along a row; None where nothing is known to.

    Asks the kinds of its layers, of which one that is not known here counts, and the class for the mark by which
    transformers tells caches that cannot be wound back. Code that comes with a model has no class here.
    """
    text = hf_config.get_text_config()
    found: set[str] = set()
    for key in ("layer_types", "layers_block_type"):
        found |= set(getattr(text, key, None) or ())
    if others := sorted(found - _NO_MEMORY):
        return f"layers of the kind {' and '.join(others)}"
    for config in (hf_config, text):
        found_class = causal_class(config)
        if getattr(found_class, "_is_stateful", False):
            return f"the layers of {found_class.__name__}"
    return None
