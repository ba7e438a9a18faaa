"""An answer, a critique of it by a principle, and a revision by the critique.

Source: constitutional AI, arXiv 2212.08073: the principle is drawn for each answer, the revision is learnt, or
preferred to the first answer.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainer.config.synthetic import RevisedRows, SyntheticConfig
from trainer.synthetic.best_answers import Answer, Asking, user_turns
from trainer.synthetic.given_rows import GivenRow
from trainer.synthetic.made_file import MadePart
from trainer.synthetic.principles import Principle

SECTION = "synthetic.revise"
ASK_CRITIQUE = (
    "Here is an answer to the request above:\n\n{answer}\n\n{critique} Say in a few sentences what is wrong with it, "
    "and how it could be better."
)
TOO_LONG = "whose prompt leaves no room for an answer, a critique or a revision"
CUT = "whose answer or revision was cut at synthetic.max_new_tokens"
EMPTY = "without a prompt, an answer, a critique or a revision"
UNCHANGED = "whose revision is the first answer"


@dataclass(frozen=True, slots=True)
class ToRevise:
    """A prompt and the answer to it; None: the model answers first."""

    row: GivenRow
    turns: list[dict[str, Any]]
    answer: str | None


def read_to_revise(row: GivenRow, options: SyntheticConfig) -> ToRevise:
    """Read the columns of a row; raises DataError where it lacks one."""
    revise, key = options.revise, f"{SECTION}.prompt_column"
    value = row.value(key, revise.prompt_column)
    if isinstance(value, list) and value and not isinstance(value[0], str):
        turns = user_turns(value, row, key)
    else:
        text = row.text(key, revise.prompt_column)
        turns = [{"role": "user", "content": text}] if text else []
    if options.system is not None and turns and turns[0]["role"] != "system":
        turns.insert(0, {"role": "system", "content": options.system})
    column = revise.answer_column
    return ToRevise(row, turns, None if column is None else row.text(f"{SECTION}.answer_column", column))


class AnswerReviser:
    """Revises answers, each by a principle that its row's name and the seed choose."""

    def __init__(
        self,
        options: SyntheticConfig,
        asking: Asking,
        principles: Sequence[Principle],
        provenance: dict[str, Any],
    ) -> None:
        """Take who is asked, the principles, and what every row's provenance says."""
        self._options, self._asking, self._principles = options, asking, principles
        words = repr([options.system, ASK_CRITIQUE, [(p.critique, p.revision) for p in principles]])
        self._provenance = {**provenance, "template": hashlib.sha256(words.encode()).hexdigest()}

    def make(self, rows: Sequence[ToRevise], number: int) -> MadePart:
        """Return the rows of a part and a note on each answer; the model is asked three times, by a seed each."""
        chosen = [
            random.Random(f"{self._options.seed}:{one.row.id}").choice(self._principles) for one in rows
        ]
        whole = [one.turns if one.turns and one.answer != "" else None for one in rows]
        asked = [turns if one.answer is None else None for one, turns in zip(rows, whole, strict=True)]
        sampled = self._ask(asked, 3 * number)
        first = [
            said if one.answer is None else Answer(one.answer, False)
            for one, said in zip(rows, sampled, strict=True)
        ]
        to_critic = [
            None if turns is None or not _is_whole(said) else self._critique(turns, said, principle)
            for turns, said, principle in zip(whole, first, chosen, strict=True)
        ]
        critiques = self._ask(to_critic, 3 * number + 1)
        to_revise = [
            None
            if turns is None or critique is None or not critique.text
            else [*turns, _said(critique.text), _asked(principle.revision)]
            for turns, critique, principle in zip(to_critic, critiques, chosen, strict=True)
        ]
        revisions = self._ask(to_revise, 3 * number + 2)
        part = MadePart()
        for place, one in enumerate(rows):
            told = (first[place], critiques[place], revisions[place])
            row, note = self._row(one, chosen[place], told)
            part.notes.append(note)
            if row is not None:
                part.rows.append(row)
        return part

    def _critique(
        self, turns: list[dict[str, Any]], said: Answer | None, principle: Principle
    ) -> list[dict[str, Any]]:
        answer = "" if said is None else said.text
        last = dict(turns[-1])
        words = ASK_CRITIQUE.format(answer=answer, critique=principle.critique)
        last["content"] = f"{last['content']}\n\n{words}"
        return [*turns[:-1], last]

    def _ask(self, prompts: Sequence[list[dict[str, Any]] | None], number: int) -> list[Answer | None]:
        """Return one answer to each prompt that there is."""
        places = [place for place, prompt in enumerate(prompts) if prompt is not None]
        found: list[Answer | None] = [None] * len(prompts)
        if places:
            asked = [prompt for prompt in prompts if prompt is not None]
            for place, several in zip(places, self._asking.answers(asked, 1, number), strict=True):
                found[place] = several[0] if several else None
        return found

    def _row(
        self, one: ToRevise, principle: Principle, told: tuple[Answer | None, Answer | None, Answer | None]
    ) -> tuple[dict[str, Any] | None, dict[str, Any]]:
        first, critique, revision = told
        if not one.turns or one.answer == "" or any(said is not None and not said.text for said in told):
            return None, {"dropped": EMPTY}
        if (first is not None and first.is_cut) or (revision is not None and revision.is_cut):
            return None, {"dropped": CUT}
        if first is None or critique is None or revision is None:
            return None, {"dropped": TOO_LONG}
        is_same = " ".join(first.text.split()) == " ".join(revision.text.split())
        note = {"unchanged": is_same, "ratio": len(revision.text) / len(first.text)}
        about = {"parent": one.row.id, "principle": principle.critique, "critique": critique.text}
        provenance = {**self._provenance, **about}
        learnt = [_said(revision.text)]
        if self._options.revise.write is RevisedRows.rows:
            return {"messages": [*one.turns, *learnt], "provenance": provenance}, note
        if is_same:
            return None, note | {"dropped": UNCHANGED}
        pair = {"prompt": one.turns, "chosen": learnt, "rejected": [_said(first.text)]}
        return {**pair, "provenance": provenance}, note


def _is_whole(said: Answer | None) -> bool:
    return said is not None and bool(said.text) and not said.is_cut


def _said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def _asked(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}
