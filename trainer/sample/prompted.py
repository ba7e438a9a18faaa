"""Answers that a language model samples to given prompts, for a reward model to choose among."""

from __future__ import annotations

from typing import Any

from trainer.config.generate import GenerateConfig
from trainer.config.scores import ScoresConfig
from trainer.errors import DataError
from trainer.model.cache import context_length
from trainer.model.tokenizer import Tokenizer
from trainer.sample.answering import ModelAnswering, prompt_tokens
from trainer.sample.scored_rows import KEY, PAIR, SEVERAL

GIVEN = (*PAIR, *SEVERAL, "completion", "messages")
"""Keys of a row that sampled answers, and their prompt, take the place of."""


class AnswerSampler:
    """Samples answers prompt by prompt; those of a prompt depend on its number, the seed and their count alone."""

    def __init__(self, model: Any, tokenizer: Tokenizer, options: ScoresConfig) -> None:
        """Take the model that answers, and how many answers of what length each prompt gets."""
        self._model, self._tokenizer, self._options = model, tokenizer, options
        sampling = GenerateConfig(
            max_new_tokens=options.max_new_tokens, temperature=options.temperature, seed=options.seed
        )
        self._answering = ModelAnswering(model, tokenizer, sampling)
        self.num_empty = 0
        """Answers so far that ended before they began, and are left out."""

    def answer(self, row: dict[str, Any], number: int) -> dict[str, Any]:
        """Return a row with sampled answers in the place of its own.

        Args:
            number: Of the row, from 0.
        Raises:
            DataError: It has no prompt, or one that leaves no room for answers.
        """
        prompt = row.get("prompt", row.get("messages"))
        if not prompt or not isinstance(prompt, str | list):
            raise DataError(
                f"`{KEY}` must hold rows with a prompt for evaluate.scores.generator, but row {number + 1} has "
                f"{sorted(row)}. Mend that line."
            )
        options, header = self._options, prompt_tokens(self._tokenizer, prompt)
        longest = context_length(self._model.config)
        if longest is not None and len(header) + options.max_new_tokens > longest:
            raise DataError(
                f"`evaluate.scores.max_new_tokens` must leave room for the prompts in the generator's {longest} "
                f"tokens, but is {options.max_new_tokens} instead and row {number + 1} has {len(header)}. Lower it, "
                "or leave that row out."
            )
        (answers,) = self._answering.answer([header], options.num_answers, number)
        said = [self._tokenizer.decode(answer.tokens).strip() for answer in answers]
        self.num_empty += said.count("")
        kept = {key: value for key, value in row.items() if key not in GIVEN}
        return {**kept, "prompt": prompt, "answers": [text for text in said if text]}
