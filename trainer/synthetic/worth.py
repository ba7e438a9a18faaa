"""What an answer is worth: by a verifier in its own process, or by a reward model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.model.tokenizer import Tokenizer
from trainer.sample.scored_rows import row_to_score
from trainer.sample.scoring import score_rows
from trainer.synthetic.best_answers import Answer, PromptRow, Worth
from trainer.synthetic.verifier_process import VerifierProcess
from trainer.synthetic.verifying import Verdict

EMPTY = "has nothing to score in an empty answer"


def by_verifier(verifier: VerifierProcess) -> Worth:
    """Return what asks a verifier about each answer."""

    def worth(one: PromptRow, said: Sequence[Answer]) -> list[Verdict]:
        return [verifier.check(one.text, answer.text, one.row.values, one.reference) for answer in said]

    return worth


@dataclass(frozen=True, slots=True)
class Scorer:
    """A reward model."""

    model: Any
    tokenizer: Tokenizer
    longest: int | None
    size: int
    """Texts that go through it at once."""


def by_reward_model(scorer: Scorer) -> Worth:
    """Return what scores the answers to a prompt; one that the model cannot read has failed."""

    def worth(one: PromptRow, said: Sequence[Answer]) -> list[Verdict]:
        as_chat = scorer.tokenizer.has_chat_template
        prompt = one.turns if as_chat else "\n\n".join(str(turn["content"]) for turn in one.turns)
        found: list[Verdict] = []
        for answer in said:
            if not answer.text:
                found.append(Verdict(None, failure=EMPTY))
                continue
            row = {"prompt": prompt, "answers": [answer.text]}
            read = row_to_score(row, Path(one.row.where), 1, scorer.tokenizer, as_chat, scorer.longest)
            if read.dropped:
                found.append(Verdict(None, failure=f"cannot read it: {read.dropped}"))
                continue
            ((score,),) = score_rows(scorer.model, [read], scorer.size)
            found.append(Verdict(score))
        return found

    return worth
