"""A question among documents of which at most one helps, and an answer that quotes that one word for word.

Source: RAFT, arXiv 2403.10131. A share of the rows has the oracle among its documents, the others have distractors
alone.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.config.synthetic import DistractorChoice, QuoteSource, RaftConfig, SyntheticConfig, WithoutOracle
from trainer.synthetic.distractors import DistractorPool, given_distractors, suitable
from trainer.synthetic.given_rows import GivenRow
from trainer.synthetic.made_file import MadePart
from trainer.synthetic.quotes import likest_sentence, quotations, quote_fault

SECTION = "synthetic.raft"
TOO_FEW = "with too few documents that do not answer"
NO_SENTENCE = "whose oracle shares no word with answer and question"
NO_REASONING = "whose prompt left no room for reasoning, or whose reasoning was cut"
EMPTY = "without a question, an answer or an oracle"
BY_QUESTION = "rows quoted by the words of their question, as those of the answer are not in the oracle"
NOT_LOOKED_FOR = "rows whose answer is too short to be looked for in distractors"
WRITE = (
    "Document:\n{document}\n\nQuestion: {question}\nAnswer: {answer}\n\nExplain in a few sentences why this is the "
    "answer. Copy the part of the document that shows it word for word, between {begin} and {end}."
)
"""What a model is asked that writes the reasoning."""

_NONE = ("", NO_REASONING, False)
Writer = Callable[[Sequence[str], int], list[list[str]]]
"""Gives several texts to each of some requests, of a part's number."""


@dataclass(frozen=True, slots=True)
class RaftQuestion:
    """What a row asks and knows."""

    row: GivenRow
    question: str
    answer: str
    oracle: str
    reasoning: str

    @property
    def is_whole(self) -> bool:
        """Tell whether anything can be made of it."""
        return bool(self.question and self.answer and self.oracle)


def read_question(row: GivenRow, raft: RaftConfig) -> RaftQuestion:
    """Read the columns of a row; raises DataError where it lacks one."""
    column = raft.reasoning_column
    return RaftQuestion(
        row,
        row.text(f"{SECTION}.question_column", raft.question_column),
        row.text(f"{SECTION}.answer_column", raft.answer_column),
        row.text(f"{SECTION}.document_column", raft.document_column),
        "" if column is None else row.text(f"{SECTION}.reasoning_column", column),
    )


class RaftMaker:
    """Makes the rows of questions, each by its own name and the seed."""

    def __init__(
        self,
        options: SyntheticConfig,
        pool: DistractorPool | None,
        provenance: dict[str, Any],
        writer: Writer | None = None,
    ) -> None:
        """Take the options, the corpus unless distractors are given, and what every row's provenance says.

        Args:
            writer: Writes reasoning, for quote=model.
        """
        self._options, self._raft, self._pool, self._writer = options, options.raft, pool, writer
        self._provenance = {**provenance, "template": template_digest(options)}

    def make(self, questions: Sequence[RaftQuestion], number: int) -> MadePart:
        """Return the rows of a part and a note on each question."""
        part = MadePart()
        for question, reasoning in zip(questions, self._reasoning(questions, number), strict=True):
            row, note = self._row(question, reasoning)
            part.notes.append(note)
            if row is not None:
                part.rows.append(row)
        return part

    def _reasoning(
        self, questions: Sequence[RaftQuestion], number: int
    ) -> list[tuple[str, str | None, bool]]:
        """Return of each question its reasoning, why it cannot be learnt, and whether its question was asked for it."""
        raft = self._raft
        begin, end = raft.quote_begin, raft.quote_end
        if raft.quote is QuoteSource.extract:
            return [self._extracted(one) for one in questions]
        if raft.quote is QuoteSource.row:
            faults = [quote_fault(one.reasoning, one.oracle, begin, end) for one in questions]
            return [(one.reasoning, fault, False) for one, fault in zip(questions, faults, strict=True)]
        assert self._writer is not None, "the command gives one"
        asked = [
            WRITE.format(document=one.oracle, question=one.question, answer=one.answer, begin=begin, end=end)
            for one in questions
        ]
        found: list[tuple[str, str | None, bool]] = []
        for one, texts in zip(questions, self._writer(asked, number), strict=True):
            told = [(text, quote_fault(text, one.oracle, begin, end), False) for text in texts]
            found.append(next((each for each in told if each[1] is None), (told or [_NONE])[0]))
        return found

    def _extracted(self, one: RaftQuestion) -> tuple[str, str | None, bool]:
        raft = self._raft
        known = f"{one.answer} {one.reasoning}".strip()
        chosen = likest_sentence(one.oracle, [known, one.question])
        if chosen is None:
            return "", NO_SENTENCE, False
        sentence, place = chosen
        quoted = f"{raft.quote_begin}{sentence}{raft.quote_end}"
        text = f"{quoted}\n\n{one.reasoning}" if one.reasoning else quoted
        return text, quote_fault(text, one.oracle, raft.quote_begin, raft.quote_end), place == 1

    def _row(
        self, one: RaftQuestion, found: tuple[str, str | None, bool]
    ) -> tuple[dict[str, Any] | None, dict[str, Any]]:
        raft, (reasoning, fault, by_question) = self._raft, found
        if not one.is_whole:
            return None, {"dropped": EMPTY}
        if fault is not None:
            return None, {"dropped": fault}
        rng = random.Random(f"{self._options.seed}:{one.row.id}")
        has_oracle = rng.random() < raft.oracle_share
        num = rng.randint(raft.min_distractors or raft.num_distractors, raft.num_distractors)
        documents, passed = self._distractors(one, num, rng)
        note: dict[str, Any] = {"passed": dict(passed), "by_question": by_question}
        note["not_looked_for"] = len(one.answer) < raft.min_leak_chars
        if len(documents) < num:
            return None, note | {"dropped": TOO_FEW}
        rng.shuffle(documents)
        place = rng.randint(0, num) if has_oracle else None
        if place is not None:
            documents.insert(place, one.oracle)
        last = f"{raft.answer_mark} {one.answer}"
        learns_quote = has_oracle or raft.without_oracle is WithoutOracle.quote
        target = f"{reasoning.strip()}\n\n{last}" if learns_quote else last
        shown = "\n\n".join(f"Document {n}:\n{text}" for n, text in enumerate(documents, 1))
        turns = [{"role": "user", "content": raft.prompt.format(documents=shown, question=one.question)}]
        if self._options.system is not None:
            turns.insert(0, {"role": "system", "content": self._options.system})
        turns.append({"role": "assistant", "content": target})
        quotes = quotations(target, raft.quote_begin, raft.quote_end) or []
        about = {"parent": one.row.id, "oracle": place, "distractors": num, "quotations": len(quotes)}
        note |= {"place": place, "documents": len(documents), "quotations": len(quotes)}
        return {"messages": turns, "provenance": {**self._provenance, **about}}, note

    def _distractors(self, one: RaftQuestion, num: int, rng: random.Random) -> tuple[list[str], Counter[str]]:
        if self._pool is not None:
            return self._pool.choose(one.question, one.answer, one.oracle, num, rng)
        raft = self._raft
        assert raft.distractors is DistractorChoice.given and raft.distractors_column is not None
        value = one.row.value(f"{SECTION}.distractors_column", raft.distractors_column)
        candidates = given_distractors(value, one.row.where, raft.distractors_column)
        return suitable(candidates, one.answer, one.oracle, num, raft)


def template_digest(options: SyntheticConfig) -> str:
    """Return the digest of the words around what a row holds."""
    raft = options.raft
    words = [options.system, raft.prompt, raft.quote_begin, raft.quote_end, raft.answer_mark]
    words += [WRITE] if raft.quote is QuoteSource.model else []
    return hashlib.sha256(repr(words).encode()).hexdigest()
