"""From a document's marked text to its tokens: which are supervised, where BOS and EOS stand, and their numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from trainer.data.chat.mark import Marked
from trainer.data.chat.quoted import quoted_cuts
from trainer.data.tokens.spans import mark_tokens, value_tokens, value_turns
from trainer.data.types import (
    Bytes,
    ChatDocument,
    CompletionDocument,
    Document,
    Float32s,
    Offsets,
    TokenizerLike,
)

Marks = tuple[list[int], Bytes]


class Encoded(NamedTuple):
    """A document as token ids, what is supervised of them, and their numbers by name."""

    ids: list[int]
    mark: Bytes
    values: dict[str, Float32s]


def encode_marked(
    documents: Sequence[Document],
    pending: Sequence[Marked],
    adds_eos: bool,
    tokenizer: TokenizerLike,
    counts: Counter[str],
    names: Sequence[str],
) -> list[Encoded]:
    """Encode documents whose text is marked; ids are empty where special tokens that a row spells out are no text.

    Counts:
        quoted_tokens, quoted_dropped: documents that spell out special tokens, encoded as text and left empty.
    """
    found: list[Encoded] = []
    with_offsets = tokenizer.encode_with_offsets([marked.text for marked in pending])
    for document, marked, (ids, offsets) in zip(documents, pending, with_offsets, strict=True):
        if cuts := quoted_cuts(marked, tokenizer):
            spelled = tokenizer.encode_spelled(marked.text, cuts)
            counts["quoted_tokens" if spelled else "quoted_dropped"] += 1
            ids, offsets = spelled or ([], [])
        found.append(encoded_of(document, marked, (ids, offsets), adds_eos, tokenizer, names))
    return found


def encoded_of(
    document: Document,
    marked: Marked,
    tokens: tuple[list[int], Offsets],
    adds_eos: bool,
    tokenizer: TokenizerLike,
    names: Sequence[str],
) -> Encoded:
    """Return a marked document whose text became these tokens, with BOS and EOS where they belong."""
    ids, offsets = tokens
    mark = mark_tokens(offsets, marked.spans)
    if isinstance(document, CompletionDocument):
        ids, mark = begun(ids, mark, tokenizer)
        ids, mark = ended(ids, mark, adds_eos, tokenizer)
    values = value_tokens(document, mark, names)
    if isinstance(document, ChatDocument):
        value_turns(document, marked, offsets, values)
    return Encoded(ids, mark, values)


def begun(ids: list[int], mark: Bytes, tokenizer: TokenizerLike) -> Marks:
    """Return the tokens with BOS before them, once, where the tokenizer wants one."""
    bos = tokenizer.bos_id
    if not tokenizer.adds_bos or bos is None or ids[:1] == [bos]:
        return ids, mark
    return [bos, *ids], np.concatenate([np.zeros(1, np.uint8), mark])


def ended(ids: list[int], mark: Bytes, adds_eos: bool, tokenizer: TokenizerLike) -> Marks:
    """Return the tokens with EOS behind them, once, where it is asked for."""
    eos = tokenizer.eos_id
    if not adds_eos or eos is None or ids[-1:] == [eos]:
        return ids, mark
    return [*ids, eos], np.concatenate([mark, np.ones(1, np.uint8)])
