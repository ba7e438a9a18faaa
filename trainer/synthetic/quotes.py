"""Quotations between two marks: each must stand in the document word for word. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.synthetic.words import sentences, words_of

NO_QUOTE = "without a quotation"
OPEN_QUOTE = "with a mark that has no other"
NOT_THERE = "with a quotation that is not in the oracle"


def quotations(text: str, begin: str, end: str) -> list[str] | None:
    """Return what stands between the marks of a text; None where a mark has no other.

    A quotation within another has no other mark either.
    """
    first, *rest = text.split(begin)
    if end in first:
        return None
    found = []
    for part in rest:
        inside, *after = part.split(end)
        if len(after) != 1:
            return None
        found.append(inside.strip())
    return found


def quote_fault(text: str, document: str, begin: str, end: str) -> str | None:
    """Return why a reasoning cannot be learnt; None where each of its quotations is a part of the document."""
    found = quotations(text, begin, end)
    if found is None:
        return OPEN_QUOTE
    if not found:
        return NO_QUOTE
    return None if all(quote and quote in document for quote in found) else NOT_THERE


def likest_sentence(document: str, texts: Sequence[str]) -> tuple[str, int] | None:
    """Return the sentence of a document that shares most words with the first text that shares any, and which that is.

    What is shared is 2 * common / (words of both), each word once; of equals the earlier sentence. None where no text
    shares a word with any sentence.
    """
    found = [(sentence, set(words_of(sentence))) for sentence in sentences(document)]
    for place, text in enumerate(texts):
        wanted = set(words_of(text))
        scored = [
            (2 * len(wanted & words) / (len(wanted) + len(words)), -number)
            for number, (_, words) in enumerate(found)
            if wanted & words
        ]
        if scored:
            return found[-max(scored)[1]][0], place
    return None
