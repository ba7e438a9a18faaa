"""Finds which characters of a rendered conversation are learnt. Knows no template and no token."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import NoReturn

from trainer.config.learn import LearnConfig, Reasoning, Turns
from trainer.data.chat.frame import find_end, find_start, stop_after
from trainer.data.chat.hand import CALLS, CONTENT, SHARED, THOUGHT, TOOLS, hand_tools, hand_turns
from trainer.data.chat.paint import Place
from trainer.data.chat.rendering import ADAPT, Rendering, render_form, render_whole
from trainer.data.chat.settle import LEARN, REASONING
from trainer.data.chat.shape import find_shape, render
from trainer.data.types import ChatDocument, Message, RowError, Span, TokenizerLike

WHOLE = "hold only what the chat template renders whole"
REASONING_FIX = (
    "Set learn.reasoning of the source to as_rendered (what the template leaves out is lost, and counted), last, "
    "drop or answer_only, or set model.chat_template to one that keeps it."
)
TOOLS_FIX = "Set model.chat_template to one that renders tools, or take the tools out of the source."
WORDS = (CONTENT, THOUGHT, CALLS)
"""What the model says in a turn."""
TAG = re.compile(r"\s*<[^<>\s]{1,60}>|\s*\[/?[A-Z][A-Z_]{1,30}\]")


@dataclass(frozen=True, slots=True)
class Marked:
    """A conversation as text."""

    text: str
    spans: list[Span]
    """What is learnt, in order."""
    words: list[Span]
    """What the row says, as against the template: special tokens spelled out in it are text."""
    turns: list[int]
    """The turn of each span; of a conversation."""


def mark_chat(
    document: ChatDocument, tokenizer: TokenizerLike, learn: LearnConfig, counts: Counter[str]
) -> Marked | None:
    """Render a conversation and find what is learnt; None if nothing is.

    A span runs from the end of the generation prompt to the end-of-turn mark, which is included; white space after
    the mark is not, unless white space is all that ends a turn.

    Counts:
        not_learnt: conversations dropped because no turn is to be learnt; reasoning_dropped, reasoning_lost,
        extras_lost, unmarked_ends: turns whose reasoning is left out on purpose or by the template, whose other keys
        are not rendered, and which end without a mark.

    Raises:
        RowError: If the template refuses the conversation or leaves out what it holds, or a turn is not found.
    """
    document = _cut_reasoning(document, learn, counts)
    learnt = _choose_turns(document.messages, learn)
    if not learnt:
        counts["not_learnt"] += 1
        return None
    rendering = render_whole(document, tokenizer, find_shape(tokenizer), counts)
    _account(rendering, learn, counts)
    extents = _extents(rendering)
    found: list[tuple[Span, int]] = []
    for turn in learnt:
        spans = _Finder(rendering, extents, tokenizer, learn, counts).find(turn)
        found += [(span, turn) for span in spans]
    found.sort()
    words = {extent for field in rendering.fields if (extent := field.extent(rendering.text)) is not None}
    return Marked(rendering.text, [span for span, _ in found], sorted(words), [turn for _, turn in found])


def mark_completion(prompt: str, completion: str) -> Marked:
    """Return a prompt with its completion, which is learnt."""
    return Marked(prompt + completion, [(len(prompt), len(prompt) + len(completion))], [], [])


def _cut_reasoning(document: ChatDocument, learn: LearnConfig, counts: Counter[str]) -> ChatDocument:
    if learn.reasoning not in (Reasoning.drop, Reasoning.last):
        return document
    answers = [i for i, message in enumerate(document.messages) if message["role"] == "assistant"]
    kept = answers[-1:] if learn.reasoning is Reasoning.last else []
    messages = []
    for turn, message in enumerate(document.messages):
        if REASONING in message and turn not in kept:
            said = message[REASONING]
            message = {key: value for key, value in message.items() if key != REASONING}
            counts["reasoning_dropped"] += bool(said.strip())
        messages.append(message)
    return replace(document, messages=messages)


def _choose_turns(messages: list[Message], learn: LearnConfig) -> list[int]:
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    left_out = answers[:-1] if learn.turns is Turns.last else []
    return [
        turn
        for turn, message in enumerate(messages)
        if turn not in left_out and message.get(LEARN, message["role"] in learn.roles) and _says(message)
    ]


def _says(message: Message) -> bool:
    said = message["content"].strip() or message.get("tool_calls") or message.get(REASONING, "").strip()
    return bool(said)


def _account(rendering: Rendering, learn: LearnConfig, counts: Counter[str]) -> None:
    for (turn, part), _ in sorted(rendering.lost().items()):
        if part.startswith("`"):
            counts["extras_lost"] += 1
            continue
        if part == THOUGHT and learn.reasoning is Reasoning.as_rendered:
            counts["reasoning_lost"] += 1
            continue
        role = "" if turn == SHARED else f" of turn {turn + 1} ({rendering.document.messages[turn]['role']})"
        value = f"{part}{role} that it leaves out or cuts"
        fix = {THOUGHT: REASONING_FIX, TOOLS: TOOLS_FIX}.get(part, ADAPT)
        if part == THOUGHT:
            raise RowError("hold only reasoning that the chat template renders whole", value, fix)
        raise RowError(WHOLE, value, fix)


Extents = dict[int, dict[str, Span]]


def _extents(rendering: Rendering) -> Extents:
    """Return where the text has the parts of each turn."""
    found: dict[Place, Span] = {}
    for field in rendering.fields:
        extent = field.extent(rendering.text)
        if extent is not None:
            first = found.get(field.place, extent)
            found[field.place] = (min(first[0], extent[0]), max(first[1], extent[1]))
    extents: Extents = {}
    for (turn, part), span in found.items():
        extents.setdefault(turn, {})[part] = span
    return extents


@dataclass(frozen=True, slots=True)
class _Finder:
    """Finds the spans of the turns of one conversation."""

    rendering: Rendering
    extents: Extents
    tokenizer: TokenizerLike
    learn: LearnConfig
    counts: Counter[str]

    def find(self, turn: int) -> list[Span]:
        text, own = self.rendering.text, self.extents.get(turn, {})
        parts = {part: span for part, span in own.items() if part in WORDS}
        if not parts:
            self._refuse(turn)
        first, last = min(a for a, _ in parts.values()), max(b for _, b in parts.values())
        others = [span for key, spans in self.extents.items() if key != turn for span in spans.values()]
        if any(a < last and b > first for a, b in others):
            self._refuse(turn)
        if self.rendering.document.messages[turn]["role"] != "assistant":
            return [(first, last)]
        before = max((b for _, b in others if b <= first), default=0)
        after = min((a for a, _ in others if a >= last), default=len(text))
        start = self._start(turn, text[before:first])
        if start is None:
            self._refuse(turn)
        first = before + start
        last += self._end(turn, text[last:after], last, after == len(text))
        if self.learn.reasoning is not Reasoning.answer_only or THOUGHT not in parts:
            return [(first, last)]
        thought_end = parts[THOUGHT][1]
        closing = TAG.match(text, thought_end)
        if len(parts) == 1:
            return []
        return [(closing.end() if closing else thought_end, last)]

    def _start(self, turn: int, gap: str) -> int | None:
        start = find_start(gap, self._render(turn), self._render(turn, prompts=True))
        if start is None:
            # The template refuses the turns before: the header of any answer.
            asked: list[Message] = [{"role": "user", "content": "Q"}]
            asked = hand_turns(asked, self.rendering.form)
            before, prompt = render(self.tokenizer, asked), render(self.tokenizer, asked, None, True)
            start = find_start(gap, before, prompt)
        return start

    def _end(self, turn: int, gap: str, last: int, is_last: bool) -> int:
        alone = None if is_last else self._alone(turn, last)
        end, has_mark = find_end(gap, alone, is_last)
        if has_mark and find_shape(self.tokenizer).has_end_mark:
            return end if self.learn.end_mark else self._closers(turn, gap, end)
        # What there is closes calls; the token that begins the next turn stops the model.
        self.counts["unmarked_ends"] += is_last
        return end + stop_after(gap[end:]) if self.learn.end_mark and not is_last else end

    def _closers(self, turn: int, gap: str, end: int) -> int:
        """Return the end of what closes a turn's calls, without the mark that ends the turn."""
        if not self.rendering.document.messages[turn].get("tool_calls"):
            return 0
        at = gap[:end].rstrip().rfind("<")
        return max(at, 0)

    def _alone(self, turn: int, last: int) -> str | None:
        """Return what is written after a turn's words when the conversation ends with it."""
        text = self._render(turn + 1)
        if text is None:
            return None
        if text[:last] == self.rendering.text[:last]:
            return text[last:]
        # The template writes the turn otherwise when it is the last: find it there by its colours.
        document = self.rendering.document
        upto = replace(document, messages=document.messages[: turn + 1])
        try:
            shorter = render_form(upto, self.rendering.form, self.tokenizer)
        except RowError:
            return None
        own = [span for part, span in _extents(shorter).get(turn, {}).items() if part in WORDS]
        return shorter.text[max(b for _, b in own) :] if own else None

    def _render(self, count: int, prompts: bool = False) -> str | None:
        document, form = self.rendering.document, self.rendering.form
        if count == 0:
            return None
        turns = hand_turns(document.messages[:count], form)
        return render(self.tokenizer, turns, hand_tools(document.tools), prompts)

    def _refuse(self, turn: int) -> NoReturn:
        rule = "hold only assistant turns that the chat template renders"
        raise RowError(rule, f"turn {turn + 1}, whose beginning and end are not in the text", ADAPT)
