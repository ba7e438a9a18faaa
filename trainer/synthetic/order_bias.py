"""Which of two answers a model prefers, asked in both orders by the probability of a letter.

Source: AI feedback by the log-probability of the letter, arXiv 2212.08073; answers that win for their place alone,
arXiv 2306.05685.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.config.synthetic import SyntheticConfig
from trainer.errors import DataError
from trainer.synthetic.best_answers import user_turns
from trainer.synthetic.given_rows import GivenRow
from trainer.synthetic.made_file import MadePart

SECTION = "synthetic.judge"
LETTERS = ("A", "B")
TIE, INCONSISTENT = "that are ties", "judged by the place of the answers"
ALIKE = "whose two answers are the same"
TOO_LONG = "too long for the judge's context"
EMPTY = "without a prompt or without two answers"

Letters = Callable[[str, str], tuple[float, float] | None]
"""Gives the log-probabilities in nats of the letters A and B after a question and how its reply begins; None where that
is too long."""


@dataclass(frozen=True, slots=True)
class TwoAnswers:
    """A prompt with two answers, as they are written, and as texts."""

    row: GivenRow
    prompt: Any
    sides: tuple[Any, Any]
    asked: str
    texts: tuple[str, str]


def read_two(row: GivenRow, options: SyntheticConfig) -> TwoAnswers:
    """Read the columns of a row; raises DataError where it lacks one, or has what is neither a text nor turns."""
    judge = options.judge
    prompt = row.value(f"{SECTION}.prompt_column", judge.prompt_column)
    columns = {"first_column": judge.first_column, "second_column": judge.second_column}
    first, second = (row.value(f"{SECTION}.{key}", column) for key, column in columns.items())
    texts = (
        _text(first, row, f"{SECTION}.first_column"),
        _text(second, row, f"{SECTION}.second_column"),
    )
    asked = _text(prompt, row, f"{SECTION}.prompt_column")
    return TwoAnswers(row, prompt, (first, second), asked, texts)


def _text(value: Any, row: GivenRow, key: str) -> str:
    """Return a text as it is, and turns as their words, a name before each where there are several."""
    if isinstance(value, str):
        return value.strip()
    if not isinstance(value, list):
        raise DataError(
            f"`{key}` must name a column of texts or turns, but {row.where} has {value!r:.60} instead. Mend that row."
        )
    user_turns(value, row, key)
    if len(value) == 1:
        return str(value[0]["content"]).strip()
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in value).strip()


@dataclass(frozen=True, slots=True)
class Preference:
    """What a judge said in both orders, log-probabilities in nats."""

    first: tuple[float, float]
    """Of A and B where A is the first answer."""
    swapped: tuple[float, float]
    """Of A and B where A is the second answer."""

    @property
    def log_odds(self) -> tuple[float, float]:
        """Log-odds of the first answer in each order, in nats."""
        return self.first[0] - self.first[1], self.swapped[1] - self.swapped[0]

    @property
    def margin(self) -> float:
        """Mean of both: what the place gives is gone from it."""
        return sum(self.log_odds) / 2

    @property
    def is_consistent(self) -> bool:
        """Tell whether both orders prefer the same answer, or are even both."""
        one, other = self.log_odds
        return (one > 0) == (other > 0) and (one < 0) == (other < 0)

    @property
    def place_odds(self) -> float:
        """Log-odds of A for its place alone, in nats."""
        one, other = self.log_odds
        return (one - other) / 2

    @property
    def mass(self) -> float:
        """Probability that the reply is one of the letters at all, mean of both orders."""
        return sum(math.exp(value) for value in (*self.first, *self.swapped)) / 2


class OrderedJudge:
    """Judges rows of two answers."""

    def __init__(
        self,
        options: SyntheticConfig,
        letters: Letters,
        provenance: dict[str, Any],
        principles: Sequence[str] = (),
    ) -> None:
        """Take who is asked, what every row's provenance says, and principles of which a question gets one."""
        self._options, self._letters, self._principles = options, letters, principles
        judge = options.judge
        words = repr([judge.question, judge.answer_begins, list(principles)])
        self._provenance = {**provenance, "template": hashlib.sha256(words.encode()).hexdigest()}

    def make(self, rows: Sequence[TwoAnswers], number: int) -> MadePart:
        """Return the pairs of a part and a note on each row."""
        part = MadePart()
        for row in rows:
            pair, note = self._pair(row)
            part.notes.append(note)
            if pair is not None:
                part.rows.append(pair)
        return part

    def _pair(self, two: TwoAnswers) -> tuple[dict[str, Any] | None, dict[str, Any]]:
        if not two.asked or not all(two.texts):
            return None, {"dropped": EMPTY}
        if two.texts[0] == two.texts[1]:
            return None, {"dropped": ALIKE}
        principle = None
        if self._principles:
            principle = random.Random(f"{self._options.seed}:{two.row.id}").choice(self._principles)
        first, swapped = self._ask(two, principle, False), self._ask(two, principle, True)
        if first is None or swapped is None:
            return None, {"dropped": TOO_LONG}
        found = Preference(first, swapped)
        note = {
            "margin": found.margin,
            "consistent": found.is_consistent,
            "place_odds": found.place_odds,
            "mass": found.mass,
        }
        if not found.is_consistent:
            return None, note | {"dropped": INCONSISTENT}
        if not abs(found.margin) > self._options.judge.min_margin:
            return None, note | {"dropped": TIE}
        better = 0 if found.margin > 0 else 1
        about = {"parent": two.row.id, "log_odds": list(found.log_odds)}
        if principle is not None:
            about["principle"] = principle
        pair = {
            "prompt": two.prompt,
            "chosen": two.sides[better],
            "rejected": two.sides[1 - better],
            "margin": abs(found.margin),
            "provenance": {**self._provenance, **about},
        }
        return pair, note

    def _ask(self, two: TwoAnswers, principle: str | None, is_swapped: bool) -> tuple[float, float] | None:
        judge = self._options.judge
        a, b = reversed(two.texts) if is_swapped else two.texts
        said = "" if principle is None else f"{principle.strip()}\n\n"
        question = judge.question.format(prompt=two.asked, a=a, b=b, principle=said)
        return self._letters(question, judge.answer_begins)
