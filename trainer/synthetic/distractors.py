"""The documents beside the oracle: ones that do not answer. Those that do, or are nearly the oracle, are left out."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from trainer.config.synthetic import DistractorChoice, RaftConfig
from trainer.errors import DataError
from trainer.synthetic.words import Bm25, contains, shared, triples

NEAR = "documents that are nearly the oracle"
LEAKS = "documents that hold the answer"
AGAIN = "documents that are nearly another of the row"
_FIRST = 64
"""Documents that are ranked before all are: a row seldom needs more."""


class DistractorPool:
    """Documents that distractors are taken from."""

    def __init__(self, documents: Iterable[str], options: RaftConfig) -> None:
        """Take the documents of the corpus, each once.

        Raises:
            DataError: There are no more than the distractors of a row, of which the oracle may be one.
        """
        self.documents = list(dict.fromkeys(documents))
        self._options = options
        if len(self.documents) <= options.num_distractors:
            raise DataError(
                "`synthetic.raft.num_distractors` must be less than the documents of the corpus, but is "
                f"{options.num_distractors} and there are {len(self.documents)}. Lower it, or give "
                "synthetic.raft.corpus."
            )
        self._triples = [triples(document) for document in self.documents]
        self._ranking = Bm25(self.documents) if options.distractors is DistractorChoice.bm25 else None

    def choose(
        self, question: str, answer: str, oracle: str, num: int, rng: random.Random
    ) -> tuple[list[str], Counter[str]]:
        """Return distractors, fewer where the corpus has no more, and what was passed over, by cause."""
        candidates = (self.documents[number] for number in self._order(question, rng))
        return suitable(candidates, answer, oracle, num, self._options)

    def _order(self, question: str, rng: random.Random) -> Iterator[int]:
        if self._ranking is None:
            numbers = list(range(len(self.documents)))
            rng.shuffle(numbers)
            yield from numbers
            return
        first = self._ranking.ranked(question, _FIRST)
        yield from first
        if len(first) < len(self.documents):
            yield from itertools.islice(self._ranking.ranked(question), len(first), None)


def suitable(
    candidates: Iterable[str], answer: str, oracle: str, num: int, options: RaftConfig
) -> tuple[list[str], Counter[str]]:
    """Return the first documents that neither hold the answer nor are nearly the oracle or one taken before.

    The oracle itself is passed over and not counted.
    """
    passed: Counter[str] = Counter()
    taken: list[str] = []
    is_looked_for = len(answer) >= options.min_leak_chars
    of_oracle = triples(oracle)
    seen: list[frozenset[tuple[str, ...]]] = []
    for document in candidates:
        if len(taken) == num:
            break
        own = triples(document)
        if document == oracle:
            continue
        if shared(own, of_oracle) >= options.near_identical:
            passed[NEAR] += 1
        elif is_looked_for and contains(document, answer):
            passed[LEAKS] += 1
        elif any(shared(own, other) >= options.near_identical for other in seen):
            passed[AGAIN] += 1
        else:
            taken.append(document)
            seen.append(own)
    return taken, passed


def given_distractors(value: object, where: str, column: str) -> Sequence[str]:
    """Return the documents of a row's own list.

    Raises:
        DataError: It is no list of texts.
    """
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise DataError(
            f"`synthetic.raft.distractors_column` must name a column of lists of texts, but '{column}' of {where} is "
            f"a {type(value).__name__}. Name another, or mend that row."
        )
    return [one.strip() for one in value]
