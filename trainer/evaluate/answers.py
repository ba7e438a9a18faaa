"""Fixed prompts, and what the loaded model answers: the most likely token each time, so that nothing is drawn.

Collective: every rank calls everything here in the same order.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer.config.during import AnswersConfig
from trainer.data.store.store import SplitStore
from trainer.data.types import Pack
from trainer.evaluate.prompt_file import read_prompts
from trainer.evaluate.tasks.batches import TaskModel
from trainer.evaluate.tasks.greedy import Prompt, continue_greedily
from trainer.model.tokenizer import Tokenizer

_LOG = logging.getLogger(__name__)
TEXT_TOKENS = 32
"""Of a held-out text that has nothing but what is learnt, so many tokens at most are the prompt."""


@dataclass(frozen=True, slots=True)
class AskedPrompt:
    """A prompt in token ids."""

    origin: str
    """Name of the file or of the source."""
    ids: list[int]
    expected: str
    """What the held-out document goes on with; empty for a prompt of a file."""


@dataclass(frozen=True, slots=True)
class GivenAnswer:
    """What one model answered to one prompt."""

    number: int
    """Of the prompt, from 0."""
    origin: str
    prompt: str
    answer: str
    expected: str
    num_tokens: int
    has_ended: bool
    """Before evaluate.during.samples.max_new_tokens."""


class Answering:
    """Has prompts answered."""

    def __init__(
        self, model: TaskModel, tokenizer: Tokenizer, asked: Sequence[AskedPrompt], max_new_tokens: int
    ) -> None:
        """Take the prompts, and say of how many the beginning does not fit the model."""
        self._model = model
        self._tokenizer = tokenizer
        self._asked = asked
        self._max_new_tokens = max_new_tokens
        num_cut = sum(len(one.ids) + max_new_tokens > model.max_length for one in asked)
        if num_cut and model.policy.mesh.is_first:
            _LOG.warning(
                "Samples: %d of %d prompts lose their beginning: prompt and answer are longer than %d tokens.",
                num_cut,
                len(asked),
                model.max_length,
            )

    def answer(self, heed: Callable[[], None] = lambda: None) -> list[GivenAnswer]:
        """Return what the loaded model answers.

        Args:
            heed: As in `TaskModel`.
        """
        model = dataclasses.replace(self._model, heed=heed)
        prompts = [Prompt(one.ids, self._max_new_tokens, ()) for one in self._asked]
        found = continue_greedily(model, prompts, self._tokenizer.decode)
        return [
            GivenAnswer(
                number=number,
                origin=one.origin,
                prompt=self._tokenizer.decode(one.ids),
                answer=self._tokenizer.decode(ids),
                expected=one.expected,
                num_tokens=len(ids),
                has_ended=len(ids) < self._max_new_tokens,
            )
            for number, (one, ids) in enumerate(zip(self._asked, found, strict=True))
        ]


def ask_file(options: AnswersConfig, tokenizer: Tokenizer) -> list[AskedPrompt]:
    """Return the prompts of a person's file.

    Raises:
        ConfigError: The file is none of prompts.
        DataError: There is no chat template, or it refuses a conversation.
    """
    texts = [
        tokenizer.render_chat(prompt.messages, None, True) if prompt.messages else prompt.text
        for prompt in read_prompts(options)
    ]
    encoded = tokenizer.encode_documents(texts)
    return [AskedPrompt(Path(options.file or "").name, ids, "") for ids in encoded]


def ask_held_out(
    stores: Mapping[str, SplitStore], num: int, max_new_tokens: int, tokenizer: Tokenizer
) -> list[AskedPrompt]:
    """Return the beginnings of held-out documents: of all sources in turn, the first document of each pack.

    Up to what is learnt first; of a text, where that is all, some tokens. Says when there are fewer.
    """
    by_source = [_beginnings(name, store, max_new_tokens, tokenizer) for name, store in stores.items()]
    rounds = itertools.zip_longest(*by_source)
    found = list(itertools.islice((one for row in rounds for one in row if one is not None), num))
    if len(found) < num:
        _LOG.warning("Samples: %d prompts instead of %d: no more is held out.", len(found), num)
    return found


def _beginnings(
    name: str, store: SplitStore, max_new_tokens: int, tokenizer: Tokenizer
) -> Iterator[AskedPrompt]:
    for index in range(store.num_packs):
        pack = store.pack(index)
        cut, end = _cut(pack, max_new_tokens)
        if 0 < cut < end:
            tokens = pack.tokens[:end].tolist()
            yield AskedPrompt(name, tokens[:cut], tokenizer.decode(tokens[cut:]))


def _cut(pack: Pack, max_new_tokens: int) -> tuple[int, int]:
    """Return where the prompt of a pack's first document ends, and where what is expected does."""
    length = pack.lengths[0]
    learnt = np.flatnonzero(pack.supervised[1:length]) + 1
    if not len(learnt):
        return 0, 0
    first = int(learnt[0])
    if first == 1:
        cut = min(length // 2, TEXT_TOKENS)
        return cut, min(length, cut + max_new_tokens)
    after = np.flatnonzero(~pack.supervised[first:length])
    last = first + int(after[0]) if len(after) else length
    return first, min(last, first + max_new_tokens)
