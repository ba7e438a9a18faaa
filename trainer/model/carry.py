"""Which architectures want a row for every document, and of which answers can share a prompt.

Those that carry something along a row, which no mask of pairs stops, and those that take no such mask.

Known from the configuration and the class, before data is prepared and weights are loaded. That documents of a pack do
not see each other is proved when a run starts, of every model.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from pathlib import Path
from typing import Any

from transformers.models.auto.configuration_auto import model_type_to_module_name

from trainer.model.lean import causal_class
from trainer.model.masks import CHUNKED, FULL, SLIDING, layer_kinds

STATEFUL, ALIBI = "_is_stateful", "build_alibi_tensor"
"""The mark of a class whose cache cannot be wound back, and the function that places tokens by a mask of padding."""
_OTHER_MODELS = re.compile(r"^\s*from \.\.(?:[a-z]\w*\.|\.models\b)", re.MULTILINE)
_NO_MEMORY = frozenset({*FULL, *SLIDING, *CHUNKED, "attention", "mlp", "moe", "dense", "sparse"})
"""Kinds of layers that see other tokens through a mask, or none."""
_SHAREABLE = frozenset({"full_attention", "sliding_attention", "attention", "mlp", "moe", "dense", "sparse"})
"""Kinds of layers that see all tokens before, or those of a window that is counted by places; or none."""
_PICKS = ("attention_chunk_size", "index_topk", "compress_rate")
"""Keys of architectures that pick what a token sees by where it is in a row, or of a summary."""


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
        if not _may_hold(config, STATEFUL):
            continue
        found_class = causal_class(config)
        if getattr(found_class, STATEFUL, False):
            return f"the layers of {found_class.__name__}"
    return None


def _may_hold(hf_config: Any, word: str) -> bool:
    """Tell whether the code of transformers for a model may have a name; False only where all of it was read.

    That is read as text: to import it, with all that models share, takes a second of each start. A file that has
    classes of other models, or that is not found, may have it.
    """
    name = model_type_to_module_name(hf_config.model_type)
    try:
        found = importlib.util.find_spec(f"transformers.models.{name}.modeling_{name.rpartition('.')[2]}")
        code = Path((found and found.origin) or "").read_text(encoding="utf-8")
    except (ImportError, OSError, ValueError):
        return True
    return word in code or _OTHER_MODELS.search(code) is not None


def takes_no_pairs(hf_config: Any) -> bool:
    """Tell whether an architecture takes no mask of pairs: it counts the places of tokens by a mask of padding (ALiBi).

    BLOOM, and Falcon where its configuration says so. Asked is the function by which such code of transformers places
    tokens, and whether its first argument is that mask: MPT's is not, and takes masks of pairs.
    """
    if not _may_hold(hf_config, ALIBI):
        return False
    places = getattr(sys.modules.get(getattr(causal_class(hf_config), "__module__", "")), ALIBI, None)
    if places is None or "attention_mask" not in inspect.signature(places).parameters:
        return False
    return bool(getattr(hf_config, "alibi", True))


def why_in_rows(hf_config: Any) -> str | None:
    """Say why documents of a model are to be rows of their own; None where they may share one."""
    carried = carried_by(hf_config)
    if carried is not None:
        return f"{carried} carry something from one document to the next"
    if takes_no_pairs(hf_config):
        return f"{hf_config.model_type} counts places of tokens by a mask of padding (ALiBi) and takes none of pairs"
    return None


def why_not_shared(hf_config: Any) -> str | None:
    """Say why answers are not to share their prompt in a pack of a model; None where they may.

    The second answer stands behind the first in a row, and its places go on behind the prompt: what is told by
    `position_ids` and by who sees whom is right, and what counts along the row is not. That all of it is right is
    proved at the start of a run.
    """
    why = why_in_rows(hf_config)
    if why is not None:
        return why
    text, found = hf_config.get_text_config(), causal_class(hf_config)
    if found is None:
        return f"the code of {hf_config.model_type} is not of transformers"
    if others := sorted((layer_kinds(text) or set()) - _SHAREABLE):
        return f"layers of the kind {' and '.join(others)} pick what they see"
    if picks := [key for key in _PICKS if getattr(text, key, None)]:
        return f"{hf_config.model_type} picks what a token sees ({', '.join(picks)})"
    if "position_ids" not in inspect.signature(found.forward).parameters:
        return f"{hf_config.model_type} counts places of tokens along a row"
    return None
