"""Answers of a language model to prompts, several of each: by the model itself, or by vLLM where it is installed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import torch

from trainer.config.generate import GenerateConfig
from trainer.model.cache import end_tokens
from trainer.model.tokenizer import Tokenizer
from trainer.sample.prompts import Draft, PromptPlan
from trainer.sample.real_prompts import GivenPrompts
from trainer.sample.sampler import TransformersSampler
from trainer.sample.vllm import VllmSampler

Prompt = str | list[dict[str, Any]]
"""A text, or the turns up to where the answer begins."""


class SampledAnswer(NamedTuple):
    """The token ids of an answer, and whether it was cut at its longest."""

    tokens: list[int]
    is_cut: bool


class AnswerSource(Protocol):
    """Answers prompts, given as token ids up to where an answer begins."""

    at_once: int
    """Prompts that are answered together."""

    def answer(
        self, prompts: Sequence[list[int]], num_answers: int, number: int
    ) -> list[list[SampledAnswer]]:
        """Return the answers to each prompt.

        Args:
            number: Of the call: it and the seed decide what is sampled.
        """


def prompt_tokens(tokenizer: Tokenizer, prompt: Prompt, begun: str = "") -> list[int]:
    """Return the token ids of a prompt up to where its answer begins; a text is a user's turn where there are turns.

    Args:
        begun: What the answer begins with.
    Raises:
        DataError: The chat template refuses the turns.
    """
    if isinstance(prompt, str) and not tokenizer.has_chat_template:
        return tokenizer.encode_documents([prompt + begun])[0]
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    text = tokenizer.render_chat(turns, add_generation_prompt=True)
    return tokenizer.encode_fragments([text + begun])[0]


def answer_stops(tokenizer: Tokenizer, model_stops: Sequence[int]) -> list[int]:
    """Return the tokens that end an answer: those of the model and the tokenizer, and the one that ends a turn."""
    stops = set(model_stops) | ({tokenizer.eos_id} if tokenizer.eos_id is not None else set())
    if tokenizer.has_chat_template and tokenizer.turn_end is not None:
        ending = tokenizer.encode_fragments([tokenizer.turn_end])[0]
        stops |= set(ending[:1]) if len(ending) == 1 else set()
    return sorted(stops)


class ModelAnswering:
    """Answers with the model that transformers loaded, a prompt after the other: each is read once for all answers."""

    at_once = 1

    def __init__(self, model: Any, tokenizer: Tokenizer, options: GenerateConfig) -> None:
        """Take the model, and how it is sampled."""
        self._model, self._options = model, options
        self._stops = answer_stops(tokenizer, sorted(end_tokens(model)))
        self._device = torch.device(model.device)

    def answer(
        self, prompts: Sequence[list[int]], num_answers: int, number: int
    ) -> list[list[SampledAnswer]]:
        """Return the answers to each prompt; those of a prompt have its number and the seed alone."""
        found = []
        for place, prompt in enumerate(prompts):
            plan = PromptPlan(False, prompt, [], self._stops)
            sampler = TransformersSampler(self._model, plan, self._options, num_answers, self._device)
            drafts = sampler.sample(number * self.at_once + place, lambda: False)
            assert drafts is not None, "nobody stops it"
            found.append(_sampled(drafts))
        return found


class VllmAnswering:
    """Answers with vLLM, many prompts together."""

    at_once = 64

    def __init__(
        self, engine: Any, tokenizer: Tokenizer, options: GenerateConfig, model_stops: Sequence[int]
    ) -> None:
        """Take the engine, how it is sampled, and the end tokens of the model's own files."""
        self._engine, self._options = engine, options
        self._plan = PromptPlan(False, [], [], answer_stops(tokenizer, model_stops))

    def answer(
        self, prompts: Sequence[list[int]], num_answers: int, number: int
    ) -> list[list[SampledAnswer]]:
        """Return the answers to each prompt."""
        order = [place for place in range(len(prompts)) for _ in range(num_answers)]
        given = GivenPrompts([[] for _ in prompts], [], list(prompts), {}, order)
        options = replace(self._options, seed=self._options.seed + number)
        drafts = VllmSampler(self._engine, self._plan, options, len(order), given).sample(0, lambda: False)
        assert drafts is not None, "nobody stops it"
        said = _sampled(drafts)
        return [said[start : start + num_answers] for start in range(0, len(said), num_answers)]


def _sampled(drafts: Sequence[Draft]) -> list[SampledAnswer]:
    return [SampledAnswer(draft.turns[0], not draft.has_ended) for draft in drafts]
