"""Finds special tokens that a row spells out in its words: there they are text and no marks. Pure."""

from __future__ import annotations

import re

from trainer.data.chat.mark import Marked
from trainer.data.types import TokenizerLike


def quoted_cuts(marked: Marked, tokenizer: TokenizerLike) -> list[int]:
    """Return where to cut the text so that no special token in a row's words is taken for one."""
    spelled = [text for text in tokenizer.special_texts if len(text) > 1]
    if not spelled or not marked.words:
        return []
    pattern = re.compile("|".join(map(re.escape, sorted(spelled, key=len, reverse=True))))
    found = (found for span in marked.words for found in pattern.finditer(marked.text, *span))
    return sorted({at.start() + 1 for at in found})
