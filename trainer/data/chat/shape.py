"""Asks a chat template with short conversations what it renders and in which form it wants it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from trainer.data.chat.hand import Form, hand_turns
from trainer.data.chat.settle import ORIGIN, REASONING, REASONING_KEYS
from trainer.data.types import Message, TokenizerLike
from trainer.errors import DataError, TemplateFailure

WORDS = ("Qalpha", "Qbravo", "Qcharlie", "Qdelta", "Qecho")
THOUGHTS = ("Qthink", "Qmuse")
NAME, KEY, VALUE = "qfunction", "qkey", "qvalue"


@dataclass(frozen=True, slots=True)
class Shape:
    """What a template renders, as far as short conversations tell."""

    parts: bool
    """Whether it takes contents as lists of parts only."""
    text_arguments: bool
    """Whether it takes arguments of calls as text only."""
    native_reasoning: str
    """Key under which it renders reasoning by itself; `content` if it parses <think> tags, empty if none."""
    seen_reasoning: dict[str, tuple[bool, bool]]
    """Of each key: whether reasoning of an earlier and of the last turn is in the text."""
    has_end_mark: bool
    """Whether it writes anything behind a last turn; where it does not, the next role's token stops the model."""
    drops: tuple[str, ...]
    """What it has no place for, in words."""

    def key(self, origin: str) -> str:
        """Return the key under which the template gets reasoning that a row has under `origin`."""
        seen, native = self.seen_reasoning, self.native_reasoning
        if native and origin != native:
            return native if origin == "content" or sum(seen[origin]) < sum(seen[native]) else origin
        return origin if any(seen[origin]) else "content"


def describe_shape(shape: Shape) -> list[str]:
    """Return lines about what a template renders, for a person."""
    lines = []
    if shape.drops:
        lines.append(
            f"The chat template has no place for: {', '.join(shape.drops)}. Rows that hold any of it are converted or "
            "refused; see learn.reasoning of a source for reasoning."
        )
    if not shape.has_end_mark:
        lines.append(
            "The chat template writes no mark behind the last turn: what is learnt of other turns ends with the token "
            "that begins the next turn, and of a last turn no stop is learnt. Set model.chat_template to one that ends "
            "turns to change that."
        )
    if shape.native_reasoning:
        name = "<think> in the content" if shape.native_reasoning == "content" else shape.native_reasoning
        lines.append(f"The chat template takes reasoning as {name}.")
    return lines


def render(
    tokenizer: TokenizerLike, messages: list[Message], tools: list[Any] | None = None, prompts: bool = False
) -> str | None:
    """Render turns that are in a template's form; None if it refuses them."""
    try:
        return tokenizer.render_chat(messages, tools, prompts)
    except DataError:
        return None


def why_always_failing(tokenizer: TokenizerLike) -> str | None:
    """Return where and how a template fails on every short conversation, before rows are read; None where it does not.

    Asked with a system turn and without, with contents as text and as parts, with a tool and without: what it may
    demand. A template that refuses one of them in words of its own is sound.
    """
    turns = _ask(_user(WORDS[0]), _assistant(WORDS[1]))
    tool = {"type": "function", "function": {"name": NAME, "description": VALUE, "parameters": {}}}
    found: str | None = None
    for tools, parts in itertools.product((None, [tool]), (False, True)):
        for asked in ([{"role": "system", "content": WORDS[4]}, *turns], turns):
            try:
                tokenizer.render_chat(hand_turns(asked, Form(parts=parts)), tools)
            except TemplateFailure as error:
                found = found or str(error).rstrip(".")
            except DataError:
                return None
            else:
                return None
    return found


def refuse_always_failing(name: str, tokenizer: TokenizerLike) -> None:
    """Raise where a source's template fails on every short conversation.

    Raises:
        DataError: Names the template's file and line.
    """
    if (why := why_always_failing(tokenizer)) is not None:
        raise DataError(
            f"`model.chat_template` must render the conversations of `data.sources.{name}`, but fails on a short one, "
            f"with a system turn and without: {why}. Mend it there, or set model.chat_template to another file."
        )


@lru_cache(maxsize=64)
def find_shape(tokenizer: TokenizerLike) -> Shape:
    """Ask the tokenizer's template."""
    parts = not _shows_words(tokenizer, False) and _shows_words(tokenizer, True)
    seen = {key: _seen(tokenizer, key, parts) for key in ("content", *REASONING_KEYS)}
    asked = hand_turns(_ask(_user(WORDS[0]), _assistant(WORDS[1])), Form(parts=parts))
    return Shape(
        parts,
        _wants_text(tokenizer, parts),
        _native(tokenizer, seen, parts),
        seen,
        not (render(tokenizer, asked) or "").endswith(WORDS[1]),
        _drops(tokenizer, parts, seen),
    )


def _ask(*said: Message) -> list[Message]:
    return list(said)


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _assistant(text: str, **more: Any) -> Message:
    return {"role": "assistant", "content": text, **more}


def _shows_words(tokenizer: TokenizerLike, parts: bool) -> bool:
    turns = _ask(_user(WORDS[0]), _assistant(WORDS[1]))
    text = render(tokenizer, hand_turns(turns, Form(parts=parts)))
    return text is not None and all(text.count(word) == 1 for word in WORDS[:2]) and "'text'" not in text


def _thought(text: str, thought: str, opening: str = "<think>\n") -> Message:
    closing = "\n</think>\n\n" if opening.endswith("\n") else "</think>"
    return _assistant(text) | {REASONING: thought, ORIGIN: ("content", opening, closing)}


def _seen(tokenizer: TokenizerLike, key: str, parts: bool) -> tuple[bool, bool]:
    turns = _ask(
        _user(WORDS[0]), _thought(WORDS[1], THOUGHTS[0]), _user(WORDS[2]), _thought(WORDS[3], THOUGHTS[1])
    )
    text = render(tokenizer, hand_turns(turns, Form(key, parts=parts))) or ""
    return THOUGHTS[0] in text, THOUGHTS[1] in text


def _native(tokenizer: TokenizerLike, seen: dict[str, tuple[bool, bool]], parts: bool) -> str:
    keys = [key for key in REASONING_KEYS if any(seen[key])]
    turns = _ask(_user(WORDS[0]), _thought(WORDS[1], THOUGHTS[0], "<think>"))
    text = render(tokenizer, hand_turns(turns, Form("content", parts=parts))) or ""
    is_verbatim = f"<think>{THOUGHTS[0]}</think>{WORDS[1]}" in text and all(seen["content"])
    if any(seen["content"]) and not is_verbatim:
        return "content" if not keys or sum(seen["content"]) >= sum(seen[keys[0]]) else keys[0]
    return max(keys, key=lambda key: sum(seen[key])) if keys else ""


def _call_turns(arguments: Any) -> list[Message]:
    call = {"type": "function", "id": "q12345678", "function": {"name": NAME, "arguments": arguments}}
    result = {"role": "tool", "content": WORDS[2], "tool_call_id": "q12345678", "name": NAME}
    return _ask(_user(WORDS[0]), _assistant("", tool_calls=[call]), result, _assistant(WORDS[3]))


def _wants_text(tokenizer: TokenizerLike, parts: bool) -> bool:
    turns = _call_turns({KEY: VALUE})
    found = []
    for text_arguments in (False, True):
        text = render(tokenizer, hand_turns(turns, Form(parts=parts, text_arguments=text_arguments))) or ""
        found.append(NAME in text and VALUE in text and f"'{KEY}'" not in text)
    return found == [False, True]


def _drops(tokenizer: TokenizerLike, parts: bool, seen: dict[str, tuple[bool, bool]]) -> tuple[str, ...]:
    form = Form(parts=parts)
    first, last = (any(pair[i] for pair in seen.values()) for i in (0, 1))
    dropped = [] if last else ["reasoning"]
    dropped += ["reasoning before the last user turn"] if last and not first else []
    asked = _ask(_user(WORDS[0]), _assistant(WORDS[1]))
    tool = {"type": "function", "function": {"name": NAME, "description": VALUE, "parameters": {}}}
    text = render(tokenizer, hand_turns(asked, form), [tool]) or ""
    dropped += [] if NAME in text else ["tool schemas"]
    calls = render(tokenizer, hand_turns(_call_turns({KEY: VALUE}), form)) or ""
    other = (
        render(tokenizer, hand_turns(_call_turns({KEY: VALUE}), Form(parts=parts, text_arguments=True))) or ""
    )
    dropped += [] if NAME in calls or NAME in other else ["tool calls"]
    dropped += [] if WORDS[2] in calls or WORDS[2] in other else ["turns of the role tool"]
    for role in ("system", "developer"):
        turn = {"role": role, "content": WORDS[4]}
        early = render(tokenizer, hand_turns([turn, *asked], form)) or ""
        dropped += [] if WORDS[4] in early else [f"turns of the role {role}"]
        if role == "system" and WORDS[4] in early:
            late = [*asked, turn, _user(WORDS[2]), _assistant(WORDS[3])]
            text = render(tokenizer, hand_turns(late, form)) or ""
            dropped += [] if WORDS[4] in text else ["system turns after the first turn"]
    return tuple(dropped)
