"""Sampled answers with what each is worth, and the rows that are made of them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from trainer.config.synthetic import SampledRows, SampleVerbConfig, SyntheticConfig
from trainer.errors import DataError
from trainer.synthetic.given_rows import GivenRow
from trainer.synthetic.made_file import MadePart
from trainer.synthetic.verifying import Verdict

SECTION = "synthetic.sample"
TRIAL_ANSWERS = 16
"""A verifier that fails so many answers from the first on would fail all."""
TOO_LONG = "whose prompt leaves no room for an answer"
NO_ANSWER = "with no answer that passed"
NO_PAIR = "whose answers are all alike to the verifier"
NOT_KNOWN = "with no answer that has a verdict"
OF_RATE = "whose pass rate is out of the range that was asked for"
EMPTY = "without a prompt"


class UselessVerifier(DataError):
    """A verifier that has failed on every answer so far."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said, and whether it was cut at the most tokens."""

    text: str
    is_cut: bool


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A prompt of a row: what the model is asked, and what its answers are compared with."""

    row: GivenRow
    turns: list[dict[str, Any]]
    reference: str

    @property
    def text(self) -> str:
        """What the user said last."""
        return str(self.turns[-1]["content"]) if self.turns else ""


class Asking(Protocol):
    """A model that is asked."""

    def answers(
        self, prompts: Sequence[list[dict[str, Any]]], num_answers: int, number: int
    ) -> list[list[Answer] | None]:
        """Return the answers to each prompt, None where it leaves no room for any; `number` is that of the part."""


Worth = Callable[[PromptRow, Sequence[Answer]], list[Verdict]]
"""Gives a verdict on each answer to a prompt."""


def read_prompt(row: GivenRow, options: SyntheticConfig) -> PromptRow:
    """Read the columns of a row.

    Raises:
        DataError: It lacks one, or its prompt is neither a text nor turns.
    """
    sample, key = options.sample, f"{SECTION}.prompt_column"
    value = row.value(key, sample.prompt_column)
    reference = ""
    if sample.reference_column is not None and (
        sample.verifier is not None or sample.reference_column in row.values
    ):
        reference = row.text(f"{SECTION}.reference_column", sample.reference_column)
    if not isinstance(value, list) or (value and isinstance(value[0], str)):
        text = row.text(key, sample.prompt_column)
        turns = [{"role": "user", "content": sample.instruction.format(prompt=text)}] if text else []
    else:
        turns = user_turns(value, row, key)
    if options.system is not None and turns and turns[0]["role"] != "system":
        turns.insert(0, {"role": "system", "content": options.system})
    return PromptRow(row, turns, reference)


def user_turns(value: list[Any], row: GivenRow, key: str) -> list[dict[str, Any]]:
    """Return the turns up to the last of the user; raises DataError where something is no turn."""
    for turn in value:
        if not isinstance(turn, dict) or not isinstance(turn.get("content"), str) or "role" not in turn:
            raise DataError(
                f"`{key}` must name a column of texts or of turns with role and content, but {row.where} has "
                f"{turn!r:.60} instead. Mend that row."
            )
    last = max((at for at, turn in enumerate(value) if turn["role"] == "user"), default=-1)
    return [dict(turn) for turn in value[: last + 1]]


class AnswersMaker:
    """Samples answers to prompts, has them judged, and makes rows of them."""

    def __init__(
        self, options: SyntheticConfig, asking: Asking, worth: Worth, provenance: dict[str, Any]
    ) -> None:
        """Take who answers, who judges, and what every row's provenance says."""
        self._sample, self._asking, self._worth = options.sample, asking, worth
        words = repr([options.system, options.sample.instruction])
        self._provenance = {**provenance, "template": hashlib.sha256(words.encode()).hexdigest()}
        self._num_failed, self._has_verdict, self._failure = 0, False, ""

    def make(self, prompts: Sequence[PromptRow], number: int) -> MadePart:
        """Return the rows of a part and a note on each prompt.

        Raises:
            UselessVerifier: It has failed on every answer since this process began.
        """
        part = MadePart()
        whole = [one for one in prompts if one.turns]
        turns = [one.turns for one in whole]
        found = self._asking.answers(turns, self._sample.num_answers, number) if whole else []
        answers = dict(zip((one.row.id for one in whole), found, strict=True))
        for one in prompts:
            said = answers.get(one.row.id)
            if said is None:
                part.notes.append({"dropped": TOO_LONG if one.turns else EMPTY})
                continue
            verdicts = self._worth(one, said)
            self._check(verdicts)
            row, note = self._row(one, said, verdicts)
            part.notes.append(note)
            if row is not None:
                part.rows.append(row)
        return part

    def _check(self, verdicts: Sequence[Verdict]) -> None:
        for verdict in verdicts:
            self._has_verdict |= verdict.score is not None
            self._num_failed += verdict.score is None
            self._failure = self._failure or verdict.failure
        if not self._has_verdict and self._num_failed >= TRIAL_ANSWERS:
            raise UselessVerifier(
                f"`{SECTION}.verifier` must give verdicts, but failed on all of the first {self._num_failed} answers: "
                f"it {self._failure}. Mend it; nothing was written."
            )

    def _row(
        self, one: PromptRow, said: Sequence[Answer], verdicts: Sequence[Verdict]
    ) -> tuple[dict[str, Any] | None, dict[str, Any]]:
        sample, known = self._sample, [v.score for v in verdicts if v.score is not None]
        passed = sum(score >= sample.pass_at for score in known)
        note: dict[str, Any] = {
            "answers": len(said),
            "known": len(known),
            "passed": passed,
            "cut": sum(answer.is_cut for answer in said),
            "empty": sum(not answer.text for answer in said),
            "failures": dict(Counter(v.failure for v in verdicts if v.score is None)),
            "seen": dict(Counter(v.note for v in verdicts if v.note)),
            "dropped": None,
        }
        about = {"parent": one.row.id, "answers": len(said), "known": len(known), "passed": passed}
        if sample.reward_model is not None:
            del about["passed"], note["passed"]
        provenance = {**self._provenance, **about}
        if not known:
            return None, note | {"dropped": NOT_KNOWN}
        if sample.write is SampledRows.rates:
            rate = passed / len(known)
            if not sample.min_rate <= rate <= sample.max_rate:
                return None, note | {"dropped": OF_RATE}
            return {**one.row.values, "pass_rate": rate, "provenance": provenance}, note
        chosen, rejected = choose(said, verdicts, sample)
        if chosen is None:
            return None, note | {"dropped": NO_ANSWER}
        if sample.write is SampledRows.best:
            turns = [*one.turns, {"role": "assistant", "content": said[chosen].text}]
            return {"messages": turns, "score": verdicts[chosen].score, "provenance": provenance}, note
        if rejected is None:
            return None, note | {"dropped": NO_PAIR}
        margin = (verdicts[chosen].score or 0.0) - (verdicts[rejected].score or 0.0)
        sides = {
            name: [{"role": "assistant", "content": said[place].text}]
            for name, place in (("chosen", chosen), ("rejected", rejected))
        }
        return {"prompt": one.turns, **sides, "margin": margin, "provenance": provenance}, note


def choose(
    said: Sequence[Answer], verdicts: Sequence[Verdict], sample: SampleVerbConfig
) -> tuple[int | None, int | None]:
    """Return the places of the best and of the worst answer, the first of equals; None where there is none.

    The best is not empty, not cut at the most tokens, and has passed where a verifier says so. The worst is not empty
    and worth less.
    """
    scores = {place: v.score for place, v in enumerate(verdicts) if v.score is not None and said[place].text}
    whole = {
        place: score
        for place, score in scores.items()
        if not said[place].is_cut and (sample.reward_model is not None or score >= sample.pass_at)
    }
    if not whole:
        return None, None
    chosen = max(whole, key=lambda place: (whole[place], -place))
    rejected = min(scores, key=lambda place: (scores[place], place))
    is_worse = scores[rejected] < whole[chosen]
    if sample.reward_model is None:
        is_worse = is_worse and scores[rejected] < sample.pass_at
    return chosen, rejected if is_worse else None
