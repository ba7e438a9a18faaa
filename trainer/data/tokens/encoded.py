"""From a document's marked text to its tokens: which are supervised, where BOS and EOS stand, and their numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import compress
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


def encode_completions(
    documents: Sequence[Document],
    pending: Sequence[Marked],
    adds_eos: bool,
    tokenizer: TokenizerLike,
    names: Sequence[str],
) -> list[Encoded]:
    """Encode prompts with their completions, which are learnt to the end: BOS and EOS where they belong.

    The first of a batch is marked by offsets as well. Where the two differ, all of the batch is marked so.
    """
    counted = tokenizer.encode_behind(
        [marked.text for marked in pending], [marked.spans[0][0] for marked in pending]
    )
    (ids, number), first = counted[0], _by_offsets(pending[0], tokenizer)
    is_known = number is not None and np.array_equal(behind(len(ids), number), first)
    pieces: list[Marks] = []
    for marked, (ids, number) in zip(pending, counted, strict=True):
        told = behind(len(ids), number) if is_known and number is not None else _by_offsets(marked, tokenizer)
        pieces.append(begun(ids, told, tokenizer))
    ends = add_end([ids for ids, _ in pieces], adds_eos, tokenizer)
    found: list[Encoded] = []
    for document, (ids, mark), has_end in zip(documents, pieces, ends, strict=True):
        whole = np.append(mark, np.uint8(1)) if has_end else mark
        found.append(Encoded(ids, whole, value_tokens(document, whole, names)))
    return found


def behind(num_tokens: int, num_before: int) -> Bytes:
    """Return marks by which all tokens but so many first ones are supervised."""
    mark = np.ones(num_tokens, np.uint8)
    mark[:num_before] = 0
    return mark


def _by_offsets(marked: Marked, tokenizer: TokenizerLike) -> Bytes:
    ((_, offsets),) = tokenizer.encode_with_offsets([marked.text])
    return mark_tokens(offsets, marked.spans)


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
    ids = list(ids)
    (has_end,) = add_end([ids], adds_eos, tokenizer)
    return ids, np.append(mark, np.uint8(1)) if has_end else mark


def add_end(documents: Sequence[list[int]], adds_eos: bool, tokenizer: TokenizerLike) -> list[bool]:
    """Put EOS behind the tokens of documents in place, once, where it is asked for; tell which of them got it."""
    eos = tokenizer.eos_id if adds_eos else None
    gets = [eos is not None and ids[-1:] != [eos] for ids in documents]
    for ids in compress(documents, gets):
        ids.append(eos)  # type: ignore[arg-type]
    return gets
