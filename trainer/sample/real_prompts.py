"""Real prompts that the model answers itself: what people asked, read from rows that have answers of others.

A prompt is a conversation up to its first answer; what follows is thrown away and said. Everything else, how the
template is rendered, is as in training.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from trainer.config.data import ColumnsConfig, DataConfig, Format, Role, SourceConfig
from trainer.config.learn import LearnConfig
from trainer.data.rows.document import parse_row
from trainer.data.rows.guess import guess_layout
from trainer.data.sized_rows import open_rows
from trainer.data.types import ChatDocument, RowError, TextDocument
from trainer.errors import ConfigError, DataError
from trainer.sample.prompts import PromptTokenizer

KEY = "replay.generate.prompt_file"
NO_QUESTION = "rows without a question before the first answer"
AGAIN = "prompts that were there before"
TOO_LONG = "prompts that leave no room for an answer in the model's context"
REFUSED = "prompts that the chat template refuses"
UNREADABLE = "rows that cannot be read"
ANSWERS, LATER = "answers of the rows, thrown away", "later turns, not asked"


@dataclass(frozen=True, slots=True)
class GivenPrompts:
    """What is asked, in the order of the rows."""

    turns: list[list[dict[str, Any]]]
    """Up to the first answer."""
    header: list[int]
    """Token ids that all prompts begin with."""
    rest: list[list[int]]
    """Token ids of each behind the header, up to where the answer begins."""
    counts: Mapping[str, int]
    """What was thrown away, by cause."""
    order: list[int]
    """In which they are asked."""

    @property
    def digest(self) -> str:
        """Return what names the tokens of all prompts."""
        return hashlib.sha256(json.dumps([self.header, self.rest]).encode()).hexdigest()

    @property
    def longest(self) -> int:
        """Return the tokens of the longest."""
        return len(self.header) + max(map(len, self.rest))

    def to_plain(self) -> dict[str, Any]:
        """Return what a store keeps of them."""
        return {"prompts": len(self.rest), "digest": self.digest, "thrown_away": dict(self.counts)}

    def place(self, number: int) -> int:
        """Return which one the sample of a number answers: each once before any comes again."""
        return self.order[number % len(self.order)]


def given_prompts(
    path: str | None,
    data: DataConfig,
    tokenizer: PromptTokenizer,
    most_tokens: int | None,
    seed: int,
) -> GivenPrompts:
    """Read prompts from files, or else from the target sources of a run.

    Args:
        most_tokens: Of a prompt; None: any number.
        seed: Of the order in which they are asked.
    Raises:
        ConfigError: No source has prompts, or the tokenizer has no template to put them in.
        DataError: There are none, or the files cannot be read.
    """
    if not tokenizer.has_chat_template:
        raise ConfigError(
            "`replay.generate.prompts` must be text for a tokenizer without a chat template, but is given instead. Set "
            "replay.generate.prompts=text, or model.chat_template=FILE."
        )
    counts: Counter[str] = Counter()
    found = _Found(tokenizer, most_tokens, counts)
    data = replace(data, values=[])
    for name, source in _read_from(path, data).items():
        for turns, tools in _questions(name, source, data, counts):
            found.add(turns, tools)
    if not found.tokens:
        where = path or "the target sources of the run"
        reasons = ", ".join(f"{reason}: {count}" for reason, count in counts.items()) or "it has no rows"
        raise DataError(f"`{KEY}` must have a prompt, but {where} has none ({reasons}). Give other rows.")
    first, last = min(found.tokens), max(found.tokens)  # in order, what these two share all share
    shared = next(
        (at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first)
    )
    header = min(shared, min(map(len, found.tokens)) - 1)
    if header < 1:
        raise ConfigError(
            "`replay.generate.prompts` must be chat for this chat template, whose prompts do not begin with one token "
            "that all share, but is given instead. Set replay.generate.prompts=chat."
        )
    order = list(range(len(found.tokens)))
    random.Random(seed).shuffle(order)
    rest = [tokens[header:] for tokens in found.tokens]
    return GivenPrompts(found.turns, found.tokens[0][:header], rest, dict(counts), order)


class _Found:
    """Prompts so far."""

    def __init__(self, tokenizer: PromptTokenizer, most_tokens: int | None, counts: Counter[str]) -> None:
        self._tokenizer, self._most_tokens, self._counts = tokenizer, most_tokens, counts
        self.turns: list[list[dict[str, Any]]] = []
        self.tokens: list[list[int]] = []
        self._seen: set[tuple[int, ...]] = set()

    def add(self, turns: list[dict[str, Any]], tools: list[Any] | None) -> None:
        """Render a prompt and keep it, or count why not."""
        try:
            text = self._tokenizer.render_chat(turns, tools, True)
        except DataError:
            self._counts[REFUSED] += 1
            return
        (tokens,) = self._tokenizer.encode_fragments([text])
        if tuple(tokens) in self._seen:
            self._counts[AGAIN] += 1
        elif len(tokens) < 2 or (self._most_tokens is not None and len(tokens) > self._most_tokens):
            self._counts[TOO_LONG] += 1
        else:
            self._seen.add(tuple(tokens))
            self.turns.append(turns)
            self.tokens.append(tokens)


def _read_from(path: str | None, data: DataConfig) -> dict[str, SourceConfig]:
    """Return the sources whose prompts are read, by name."""
    if path is not None:
        return {"prompts": _source_of(path, data)}
    fit = {
        name: replace(source, as_chat=source.format is Format.completion)
        for name, source in data.sources.items()
        if source.role is Role.target and source.format in (Format.chat, Format.completion)
    }
    if not fit:
        raise ConfigError(
            f"`{KEY}` must be a file for replay.generate.prompts=given without a target source of chats or answers, "
            "but is null instead. Name a file of prompts."
        )
    return fit


def _source_of(path: str, data: DataConfig) -> SourceConfig:
    """Return a source that reads a file of prompts: of a layout that training knows, else of prompts alone."""
    alone = SourceConfig(path=path, format=Format.text, columns=ColumnsConfig(text="prompt"))
    try:
        found = guess_layout("prompts", path, True, [], LearnConfig()).source
    except DataError:
        first = next(iter(open_rows("prompts", alone, data).rows.batches()), None)
        if first is None or "prompt" not in first.rows[0]:
            raise
        return alone
    if found.format not in (Format.chat, Format.completion, Format.text):
        raise DataError(
            f"`{KEY}` must hold chats, prompts with answers, or prompts alone, but {path} holds rows of "
            f"format={found.format.value} instead. Give another file."
        )
    if found.format is Format.text and path.endswith(".txt"):
        return replace(found, txt_documents="line")
    return found


def _questions(
    name: str, source: SourceConfig, data: DataConfig, counts: Counter[str]
) -> Iterator[tuple[list[dict[str, Any]], list[Any] | None]]:
    """Yield the turns of each row up to its first answer, and its tools."""
    rows = open_rows(name, source, data).rows
    for batch in rows.batches():
        for row in batch.rows:
            try:
                document = parse_row(row, rows.source, Counter())
            except RowError:
                counts[UNREADABLE] += 1
                continue
            if isinstance(document, TextDocument) and document.text.strip():
                yield [{"role": "user", "content": document.text.strip()}], None
                continue
            messages: Sequence[Any] = document.messages if isinstance(document, ChatDocument) else ()
            roles = [turn["role"] for turn in messages]
            end = roles.index("assistant") if "assistant" in roles else len(roles)
            if "user" not in roles[:end]:
                counts[NO_QUESTION] += 1
                continue
            counts[ANSWERS] += roles.count("assistant")
            counts[LATER] += len([role for role in roles[end:] if role != "assistant"])
            tools = document.tools if isinstance(document, ChatDocument) else None
            yield [dict(turn) for turn in messages[:end]], tools
