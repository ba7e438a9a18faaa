"""Questions to parts of documents, and a second look at whether the part answers them."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.config.synthetic import SyntheticConfig
from trainer.synthetic.best_answers import Asking
from trainer.synthetic.made_file import MadePart, Row
from trainer.synthetic.order_bias import Letters
from trainer.synthetic.words import sentences, shared, triples

SECTION = "synthetic.questions"
ASK = (
    "Text:\n{document}\n\nWrite one question that this text answers, and its answer, in this form:\nQuestion: ...\n"
    "Answer: ..."
)
ASK_AGAIN = (
    "Text:\n{document}\n\nQuestion: {question}\nProposed answer: {answer}\n\nDoes the text answer "
    "the question so? A: yes. B: no. Reply with the letter, A or B."
)
BEGINS = "The letter is "
TOO_LONG = "too long for the model's context"
NO_FORM = "without a question and an answer in the form that was asked for"
NOT_ANSWERED = "that the second pass does not find answered"
_FORM = re.compile(r"Question:\s*(.+?)\s*\n+\s*Answer:\s*(.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class DocumentChunk:
    """A part of a document."""

    id: str
    """Of its row, and the number of the part, from 1."""
    parent: str
    text: str


def chunks_of(parent: str, text: str, most_chars: int) -> list[DocumentChunk]:
    """Return the parts of a document of at most so many characters: whole paragraphs, else sentences, else words."""
    pieces = [piece for paragraph in re.split(r"\n\s*\n", text) for piece in _pieces(paragraph, most_chars)]
    parts: list[str] = []
    for joint, piece in pieces:
        if parts and len(parts[-1]) + len(joint) + len(piece) <= most_chars:
            parts[-1] += joint + piece
        else:
            parts.append(piece)
    return [DocumentChunk(f"{parent}#{n}", parent, part) for n, part in enumerate(parts, 1)]


def _pieces(paragraph: str, most_chars: int) -> list[tuple[str, str]]:
    """Return a paragraph in pieces that fit, each behind what joins it to the piece before."""
    whole = paragraph.strip()
    if len(whole) <= most_chars:
        return [("\n\n", whole)] if whole else []
    found: list[tuple[str, str]] = []
    for sentence in sentences(whole):
        if len(sentence) <= most_chars:
            found.append((" ", sentence))
            continue
        for word in sentence.split():
            found += [(" ", word[at : at + most_chars]) for at in range(0, len(word), most_chars)]
    return [("\n\n", found[0][1]), *found[1:]]


class QuestionWriter:
    """Writes questions to parts of documents, and asks again whether the part answers them."""

    def __init__(
        self, options: SyntheticConfig, asking: Asking, letters: Letters, provenance: dict[str, Any]
    ) -> None:
        """Take who is asked, and what every row's provenance says."""
        self._questions, self._asking, self._letters = options.questions, asking, letters
        self._system = options.system
        words = repr([options.system, ASK, ASK_AGAIN, BEGINS])
        self._provenance = {**provenance, "template": hashlib.sha256(words.encode()).hexdigest()}

    def make(self, chunks: Sequence[DocumentChunk], number: int) -> MadePart:
        """Return the rows of some parts of documents, and a note on each question."""
        system = [] if self._system is None else [{"role": "system", "content": self._system}]
        asked = [[*system, {"role": "user", "content": ASK.format(document=chunk.text)}] for chunk in chunks]
        part = MadePart()
        found = self._asking.answers(asked, self._questions.per_chunk, number)
        for chunk, several in zip(chunks, found, strict=True):
            if several is None:
                part.notes.append({"dropped": TOO_LONG})
                continue
            for place, said in enumerate(several):
                row, note = self._row(chunk, place, "" if said.is_cut else said.text)
                part.notes.append(note)
                if row is not None:
                    part.rows.append(row)
        return part

    def _row(self, chunk: DocumentChunk, place: int, said: str) -> tuple[Row | None, dict[str, Any]]:
        form = _FORM.search(said)
        if form is None:
            return None, {"dropped": NO_FORM}
        question, answer = form[1].strip(), form[2].strip()
        again = ASK_AGAIN.format(document=chunk.text, question=question, answer=answer)
        told = self._letters(again, BEGINS)
        if told is None:
            return None, {"dropped": TOO_LONG}
        yes = 1 / (1 + math.exp(min(told[1] - told[0], 700.0)))
        if yes < self._questions.min_answerable:
            return None, {"dropped": NOT_ANSWERED, "yes": yes}
        row = {
            "id": f"{chunk.id}.{place + 1}",
            "question": question,
            "answer": answer,
            "document": chunk.text,
        }
        about = {"parent": chunk.parent, "chunk": chunk.id, "answerable": yes}
        return {**row, "provenance": {**self._provenance, **about}}, {"dropped": None, "yes": yes}


def near_duplicates_out(near_identical: float) -> Callable[[Row], bool]:
    """Return what tells of each row in turn whether its question is none that was kept before.

    Compared are questions that share a triple of words: others share no part that counts.
    """
    kept: list[frozenset[tuple[str, ...]]] = []
    having: dict[tuple[str, ...], list[int]] = {}

    def is_new(row: Row) -> bool:
        own = triples(row["question"])
        candidates = {place for triple in own for place in having.get(triple, ())}
        if any(shared(own, kept[place]) >= near_identical for place in candidates):
            return False
        for triple in own:
            having.setdefault(triple, []).append(len(kept))
        kept.append(own)
        return True

    return is_new
