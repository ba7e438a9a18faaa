"""The size of what tokens say, which bits per byte are divided by."""

from __future__ import annotations

import numpy as np

from trainer.data.types import Int64s, TokenizerLike


def text_bytes(tokenizer: TokenizerLike, tokens: Int64s) -> int:
    """Return the UTF-8 bytes of the text of tokens; special tokens are no text, long as their names may be."""
    said = tokens[~np.isin(tokens, list(tokenizer.special_ids))]
    return len(tokenizer.decode(said.tolist()).encode("utf-8"))
