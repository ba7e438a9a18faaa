"""A model that is asked for answers, or for the probability of a letter."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from trainer.errors import ModelError
from trainer.model.tokenizer import Tokenizer
from trainer.sample.answering import AnswerSource, prompt_tokens
from trainer.synthetic.best_answers import Answer
from trainer.synthetic.order_bias import LETTERS


@dataclass(frozen=True, slots=True)
class AskedModel:
    """A model and its tokenizer; prompts that it has no room for are not asked."""

    tokenizer: Tokenizer
    answering: AnswerSource
    max_new_tokens: int
    longest: int | None
    """Tokens of its context; None: not known."""

    def answers(
        self, prompts: Sequence[list[dict[str, Any]]], num_answers: int, number: int
    ) -> list[list[Answer] | None]:
        """Return the answers to each prompt, None where it leaves no room for one; `number` is that of the part."""
        tokens = [prompt_tokens(self.tokenizer, _prompt(turns, self.tokenizer)) for turns in prompts]
        most = None if self.longest is None else self.longest - self.max_new_tokens
        fits = [place for place, ids in enumerate(tokens) if most is None or len(ids) <= most]
        found: list[list[Answer] | None] = [None] * len(prompts)
        if not fits:
            return found
        sampled = self.answering.answer([tokens[place] for place in fits], num_answers, number)
        for place, several in zip(fits, sampled, strict=True):
            texts = [self.tokenizer.decode(one.tokens).strip() for one in several]
            found[place] = [Answer(text, one.is_cut) for text, one in zip(texts, several, strict=True)]
        return found


def _prompt(turns: list[dict[str, Any]], tokenizer: Tokenizer) -> str | list[dict[str, Any]]:
    """Return turns for a tokenizer with a chat template, else their words as a text."""
    if tokenizer.has_chat_template:
        return turns
    return "\n\n".join(str(turn["content"]) for turn in turns) + "\n\n"


class LetterReader:
    """Reads the probability of two letters off a model of plain transformers."""

    def __init__(self, model: Any, tokenizer: Tokenizer, longest: int | None) -> None:
        """Take the model and the tokens of its context; None: not known."""
        self._model, self._tokenizer, self._longest = model, tokenizer, longest
        keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._last_only: dict[str, Any] = {"logits_to_keep": 1} if keeps else {}

    @torch.inference_mode()
    def letters(self, question: str, begins: str) -> tuple[float, float] | None:
        """Return the log-probabilities in nats of A and B behind the beginning of a reply; None where it is too long.

        Raises:
            ModelError: The tokenizer has no single token for each behind those words.
        """
        one, other = (prompt_tokens(self._tokenizer, question, begins + letter) for letter in LETTERS)
        shared = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
        if shared is None or len(one) != shared + 1 or len(other) != shared + 1:
            raise ModelError(
                "`synthetic.judge.answer_begins` must be followed by a token for each letter, but this tokenizer has "
                f"none behind {begins!r}. Give other words, such as '('."
            )
        if self._longest is not None and shared + 1 > self._longest:
            return None
        ids = torch.tensor([one[:shared]], device=self._model.device)
        logits_V = self._model(ids, use_cache=False, **self._last_only).logits[0, -1]
        told_V = torch.log_softmax(logits_V.double(), dim=-1)
        return float(told_V[one[shared]]), float(told_V[other[shared]])
