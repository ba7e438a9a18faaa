"""Whether a model makes the tool calls of held-out rows: the same tools, and the same arguments.

A held-out turn is asked with all that stands before it in its row, as it was prepared, and the most likely tokens that
follow are read as what the row has there is read.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trainer.config.asked import EXACT, NAMES, TOOL_CALLS, UNREADABLE, CallsConfig
from trainer.data.store.prepared import digest_of
from trainer.data.store.store import SplitStore
from trainer.data.types import Pack
from trainer.errors import ConfigError
from trainer.evaluate.tasks.batches import TaskModel
from trainer.evaluate.tasks.greedy import Prompt, continue_greedily
from trainer.evaluate.tasks.score import TaskScore, share_score
from trainer.evaluate.tasks.spoken_calls import SpokenCall, has_same_names, is_same, read_calls
from trainer.model.tokenizer import Tokenizer

_LOG = logging.getLogger(__name__)
JUDGED = 1
"""Raise it where the same answers are judged otherwise: kept scores of the base are of one way to judge."""


@dataclass(frozen=True, slots=True)
class CallQuestion:
    """A held-out turn with calls."""

    ids: list[int]
    """All tokens before it."""
    expected: tuple[SpokenCall, ...]


class ToolCallTask:
    """Asks for the calls of held-out turns."""

    def __init__(self, questions: Sequence[CallQuestion], max_new_tokens: int) -> None:
        self.questions = questions
        self._max_new_tokens = max_new_tokens

    @property
    def digest(self) -> str:
        """Name what is asked and how it is judged."""
        asked = [[one.ids, [[call.name, call.arguments] for call in one.expected]] for one in self.questions]
        return digest_of([TOOL_CALLS, JUDGED, self._max_new_tokens, asked])

    def run(self, model: TaskModel, tokenizer: Tokenizer) -> list[TaskScore]:
        """Return the shares of turns whose calls are the same, have the same names, and cannot be read."""
        num_cut = sum(len(one.ids) + self._max_new_tokens > model.max_length for one in self.questions)
        if num_cut and model.policy.mesh.is_first:
            _LOG.warning(
                "Tool calls: %d of %d prompts lose their beginning, where tools are listed: prompt and answer are "
                "longer than %d tokens.",
                num_cut,
                len(self.questions),
                model.max_length,
            )
        end = tokenizer.turn_end_id
        stops = frozenset() if end is None else frozenset([end])
        prompts = [Prompt(one.ids, self._max_new_tokens, (), stops) for one in self.questions]
        answers = continue_greedily(model, prompts, tokenizer.decode)
        found = [read_calls(tokenizer.decode(ids)) for ids in answers]
        return judge_calls([one.expected for one in self.questions], found)


def judge_calls(
    expected: Sequence[Sequence[SpokenCall]], found: Sequence[Sequence[SpokenCall]]
) -> list[TaskScore]:
    """Return the scores of turns that are answered with these calls; none of a turn: it cannot be read."""
    pairs = list(zip(expected, found, strict=True))
    return [
        share_score(TOOL_CALLS, EXACT, [is_same(one, other) for one, other in pairs], True),
        share_score(TOOL_CALLS, NAMES, [has_same_names(one, other) for one, other in pairs], True),
        share_score(TOOL_CALLS, UNREADABLE, [not other for _, other in pairs], False),
    ]


def ask_calls(
    stores: Mapping[str, SplitStore], options: CallsConfig, max_packs: int, tokenizer: Tokenizer
) -> ToolCallTask:
    """Lay out held-out turns with calls, of all sources in turn; says where there are fewer than asked for.

    Args:
        stores: Held-out text of sources of chats.
        max_packs: The first packs of each that are looked through.
    Raises:
        ConfigError: There is none.
    """
    by_source = [_questions(store, max_packs, tokenizer) for store in stores.values()]
    rounds = itertools.zip_longest(*by_source)
    found = list(itertools.islice((one for row in rounds for one in row if one is not None), options.num))
    if not found:
        raise ConfigError(
            f"`evaluate.asked.tool_calls.num` must be 0 where no held-out turn has a tool call that can be read back, "
            f"but is {options.num} instead; looked through the first {max_packs} held-out packs of "
            f"{', '.join(stores) or 'no source of chats'}. Raise data.validation_frac, or take a chat template that "
            "writes calls as docs/tool-calls-and-safety.md lists."
        )
    if len(found) < options.num:
        _LOG.warning("Tool calls: %d turns instead of %d: no more is held out.", len(found), options.num)
    return ToolCallTask(found, options.max_new_tokens)


def _questions(store: SplitStore, max_packs: int, tokenizer: Tokenizer) -> Iterator[CallQuestion]:
    for index in range(min(store.num_packs, max_packs)):
        pack = store.pack(index)
        start = 0
        for length in pack.lengths:
            yield from _of_document(pack, start, start + length, tokenizer)
            start += length


def _of_document(pack: Pack, start: int, end: int, tokenizer: Tokenizer) -> Iterator[CallQuestion]:
    """Yield the turns with calls of a document: what is learnt between what is not."""
    learnt = np.concatenate([[False], pack.supervised[start:end], [False]])
    edges = np.flatnonzero(learnt[1:] != learnt[:-1]).reshape(-1, 2)
    tokens = pack.tokens[start:end].tolist()
    for first, last in edges.tolist():
        calls = read_calls(tokenizer.decode(tokens[first:last])) if first else []
        if calls:
            yield CallQuestion(tokens[:first], tuple(calls))
