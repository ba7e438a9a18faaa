"""Texts as words: what they share, which of many resemble a question, and their sentences. Pure."""

from __future__ import annotations

import heapq
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

_WORD = re.compile(r"\w+")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]?[A-Z0-9])|\n+")
K1, B = 1.5, 0.75
"""Of Okapi BM25, as usually taken: how soon repetition saturates, and how much length counts."""


def words_of(text: str) -> list[str]:
    """Return the words of a text, whatever their case and Unicode form."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def plain(text: str) -> str:
    """Return a text as its words with a space around each, so that a run of words is looked for as a part of it."""
    return f" {' '.join(words_of(text))} "


def contains(document: str, answer: str) -> bool:
    """Tell whether the words of an answer stand in a document one after the other."""
    return plain(answer) in plain(document) if words_of(answer) else False


def triples(text: str) -> frozenset[tuple[str, ...]]:
    """Return the runs of three words of a text; of a shorter one itself."""
    found = words_of(text)
    return frozenset(tuple(found[at : at + 3]) for at in range(max(len(found) - 2, 1)))


def shared(one: frozenset[tuple[str, ...]], other: frozenset[tuple[str, ...]]) -> float:
    """Return the share of the smaller set that is in the other: 1 where a text is a part of the other."""
    return len(one & other) / max(min(len(one), len(other)), 1)


def sentences(text: str) -> Iterator[str]:
    """Yield the sentences of a text, each as it stands there."""
    start = 0
    for end in [*_SENTENCE_END.finditer(text), None]:
        stop = len(text) if end is None else end.start()
        if sentence := text[start:stop].strip():
            yield sentence
        start = len(text) if end is None else end.end()


class Bm25:
    """Okapi BM25 over documents (Robertson and Zaragoza 2009, doi:10.1561/1500000019)."""

    def __init__(self, documents: Sequence[str]) -> None:
        """Count the words of all documents."""
        counts = [Counter(words_of(document)) for document in documents]
        lengths = [sum(count.values()) for count in counts]
        mean = max(sum(lengths) / max(len(lengths), 1), 1e-9)
        self._norms = [K1 * (1 - B + B * length / mean) for length in lengths]
        self._with: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        for number, count in enumerate(counts):
            for word, times in count.items():
                self._with[word].append((number, times))
        self._num = len(documents)

    def scores(self, question: str) -> dict[int, float]:
        """Return the scores of the documents that share a word with a question, by number."""
        found: defaultdict[int, float] = defaultdict(float)
        for word in sorted(set(words_of(question)) & self._with.keys()):
            places = self._with[word]
            idf = math.log(1 + (self._num - len(places) + 0.5) / (len(places) + 0.5))
            for number, times in places:
                found[number] += idf * times * (K1 + 1) / (times + self._norms[number])
        return dict(found)

    def ranked(self, question: str, most: int | None = None) -> list[int]:
        """Return the numbers of documents, the likest first; of equals, and of those that share nothing, the earlier.

        Args:
            most: How many; None: all.
        """
        scores = self.scores(question)
        order = [(-scores.get(number, 0.0), number) for number in range(self._num)]
        return [number for _, number in (heapq.nsmallest(most, order) if most else sorted(order))]
