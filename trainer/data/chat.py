"""Finds which characters of a rendered conversation the assistant wrote. Knows no template and no token.

Chat templates seldom mark the assistant's turns, so the turns are found by rendering prefixes of the
conversation and comparing them with the whole.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from trainer.data.types import ChatDocument, Message, RowError, TokenizerLike
from trainer.errors import DataError

Span = tuple[int, int]

THINKING = re.compile(r"\s*<think>.*?</think>\s*", re.DOTALL)
MARK = re.compile(r"\s*(<[^\s<>]+>|\[[^\s\[\]]+\])")
SENTINEL = "palimpsest"
ADAPT = (
    "Change these rows to turns that the template takes (for one without a system role: put the "
    "system prompt into the first user turn), or set model.chat_template."
)


@dataclass(frozen=True, slots=True)
class _Frame:
    """What a template writes before and after an assistant's turn."""

    header: str
    ending: str


def mark_chat(document: ChatDocument, tokenizer: TokenizerLike) -> tuple[str, list[Span]]:
    """Render a conversation and return the text with the spans that are supervised.

    A span runs from the end of the generation prompt to the end-of-turn mark, which is included;
    white space after the mark is not, unless white space is all that ends a turn.

    Raises:
        RowError: If the template refuses the conversation, or a turn is not found in the text.
    """
    try:
        full = tokenizer.render_chat(document.messages, document.tools)
    except DataError as refusal:
        rule = "hold only conversations that the chat template takes"
        raise RowError(rule, f"one that it refuses: {refusal}", ADAPT) from None
    spans: list[Span] = []
    for index, message in enumerate(document.messages):
        if message["role"] != "assistant":
            continue
        span = _find_turn(full, index, document, tokenizer, spans[-1][1] if spans else 0)
        if span is None or not _holds_calls(full[slice(*span)], message):
            rule = "hold only assistant turns that the chat template renders"
            raise RowError(rule, f"turn {index + 1}, which is not (whole) in the text", ADAPT)
        spans.append(span)
    return full, spans


def _find_turn(
    full: str, index: int, document: ChatDocument, tokenizer: TokenizerLike, cursor: int
) -> Span | None:
    messages, tools = document.messages, document.tools
    prompt = _render(tokenizer, messages[:index], tools, add_generation_prompt=True)
    upto = _render(tokenizer, messages[: index + 1], tools)
    content = messages[index]["content"].strip()
    if prompt is not None and upto is not None and upto.startswith(prompt):
        body = upto[len(prompt) :]
        if full.startswith(prompt) and (end := _match_body(full, len(prompt), body, content)):
            return len(prompt), end
    # From here on the template rewrites or refuses prefixes, or its generation prompt says more
    # than a finished turn begins with (an opened <think>): look for the turn after the last one.
    frame = _find_frame(tokenizer)
    starts = _find_starts(full, frame.header, cursor)
    if prompt is not None and upto is not None:
        opening = upto.rfind(frame.header, 0, len(prompt)) if frame.header else -1
        body = upto[opening + len(frame.header) :] if opening >= 0 else ""
        for start in starts[:1]:
            if body and (end := _match_body(full, start, body, content)):
                return start, end
    return _find_content(full, content, starts, frame, cursor)


def _holds_calls(said: str, message: Message) -> bool:
    # A template without tools leaves calls out without a word; the turn would teach silence.
    calls = [call.get("function", call) for call in message.get("tool_calls", [])]
    return all(str(call.get("name", "")) in said for call in calls)


def _match_body(full: str, start: int, body: str, content: str) -> int | None:
    # Some templates keep the reasoning of the last turn only: it stands in `body`, not in `full`.
    for candidate in (body, THINKING.sub("", body, count=1)):
        turn = candidate.rstrip()
        if content and turn.endswith(content):
            turn = candidate
        if turn and full.startswith(turn, start):
            return start + len(turn)
    return None


def _find_starts(full: str, header: str, cursor: int) -> list[int]:
    if not header:
        return []
    return [at.end() for at in re.compile(re.escape(header)).finditer(full, cursor)]


def _find_content(full: str, content: str, starts: list[int], frame: _Frame, cursor: int) -> Span | None:
    # The content alone, right behind a header; without a header only if it stands there once, so
    # that a user's words are never taken for the assistant's. An empty turn cannot be found.
    for said in (content, THINKING.sub("", content, count=1).strip()):
        if not said:
            continue
        behind = re.compile(r"\s*" + re.escape(said))
        for start in starts:
            if found := behind.match(full, start):
                return start, _skip_ending(full, found.end(), frame.ending)
        if not starts and full.count(said, cursor) == 1:
            at = full.find(said, cursor)
            return at, _skip_ending(full, at + len(said), frame.ending)
    return None


def _skip_ending(full: str, end: int, ending: str) -> int:
    if ending and full.startswith(ending, end):
        return end + len(ending)
    # The last turn of a conversation may end with more marks than those before it.
    mark = MARK.match(full, end)
    return mark.end() if mark and ending.startswith(mark.group(1)) else end


def _find_frame(tokenizer: TokenizerLike) -> _Frame:
    asked: Message = {"role": "user", "content": "?"}
    said: Message = {"role": "assistant", "content": SENTINEL}
    before = _render(tokenizer, [asked], None)
    prompt = _render(tokenizer, [asked], None, add_generation_prompt=True)
    whole = _render(tokenizer, [asked, said], None)
    if before is None or prompt is None or whole is None or SENTINEL not in whole:
        return _Frame("", "")
    written, tail = whole.rsplit(SENTINEL, 1)
    # What is written before the words, and again in every generation prompt.
    header = _common_prefix(prompt, written)[len(_common_prefix(before, prompt)) :]
    return _Frame(header, tail.rstrip() or tail)


def _common_prefix(first: str, second: str) -> str:
    length = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        length += 1
    return first[:length]


def _render(
    tokenizer: TokenizerLike,
    messages: list[Message],
    tools: list[Any] | None,
    add_generation_prompt: bool = False,
) -> str | None:
    try:
        return tokenizer.render_chat(messages, tools, add_generation_prompt)
    except DataError:
        return None
