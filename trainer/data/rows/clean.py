"""Cleans documents and names their content by a digest. Pure; duplicates are the caller's to drop."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter
from dataclasses import replace
from typing import assert_never

from trainer.config.data import CleanConfig
from trainer.data.types import (
    ChatDocument,
    CompletionDocument,
    Document,
    IdsDocument,
    TextDocument,
)

DIGEST_BYTES = 16
KEPT_CONTROLS = "\n\t"


def normalize(text: str) -> str:
    """Apply NFC and drop control characters other than newline and tab."""
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n"))
    if text.isprintable():
        return text
    return "".join(c for c in text if c in KEPT_CONTROLS or unicodedata.category(c) != "Cc")


def clean_document(document: Document, options: CleanConfig, counts: Counter[str]) -> Document | None:
    """Return the cleaned document, or None if it is dropped; `counts` says what was done.

    Counts:
        normalized, stripped: documents changed; too_short, too_long: documents dropped.
    """
    if isinstance(document, IdsDocument):
        return document
    if options.normalize_unicode:
        document = _counted(document, _normalized(document), "normalized", counts)
    if options.strip:
        document = _counted(document, _stripped(document), "stripped", counts)
    num_chars = count_chars(document)
    if num_chars < options.min_chars:
        counts["too_short"] += 1
        return None
    if options.max_chars is not None and num_chars > options.max_chars:
        counts["too_long"] += 1
        return None
    return document


def _counted(before: Document, after: Document, name: str, counts: Counter[str]) -> Document:
    counts[name] += before != after
    return after


def _normalized(document: Document) -> Document:
    match document:
        case TextDocument(text):
            return replace(document, text=normalize(text))
        case CompletionDocument(prompt, completion):
            return replace(document, prompt=normalize(prompt), completion=normalize(completion))
        case ChatDocument(messages):
            return replace(document, messages=[{**m, "content": normalize(m["content"])} for m in messages])
        case IdsDocument():
            return document
        case _:
            assert_never(document)


def _stripped(document: Document) -> Document:
    match document:
        case TextDocument(text):
            return replace(document, text=text.strip())
        case CompletionDocument(prompt, completion):
            # Only the outer ends: white space between prompt and completion is part of the format.
            return replace(document, prompt=prompt.lstrip(), completion=completion.rstrip())
        case ChatDocument(messages):
            return replace(document, messages=[{**m, "content": m["content"].strip()} for m in messages])
        case IdsDocument():
            return document
        case _:
            assert_never(document)


def count_chars(document: Document) -> int:
    """Count the characters that min_chars and max_chars are about."""
    match document:
        case TextDocument(text):
            return len(text)
        case CompletionDocument(prompt, completion):
            return len(prompt) + len(completion)
        case ChatDocument(messages):
            return sum(len(m["content"]) + 2 * ("tool_calls" in m) for m in messages)
        case IdsDocument(ids):
            return len(ids)
        case _:
            assert_never(document)


def content_digest(document: Document) -> bytes:
    """Hash the content of a document: the same content gives the same digest in any source.

    The numbers that it carries are not part of it, so that no weight moves it to the held-out side.
    """
    match document:
        case TextDocument(text):
            content = text
        case CompletionDocument(prompt, completion):
            content = json.dumps([prompt, completion])
        case ChatDocument(messages, tools):
            content = json.dumps([messages, tools], sort_keys=True, default=str)
        case IdsDocument(ids, loss_mask):
            content = json.dumps([ids, loss_mask])
        case _:
            assert_never(document)
    raw = content.encode("utf-8", errors="surrogatepass")
    return hashlib.sha256(raw).digest()[:DIGEST_BYTES]
