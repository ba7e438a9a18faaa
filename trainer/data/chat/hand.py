"""Writes settled turns in the form that a chat template reads. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trainer.data.chat.settle import ORIGIN, OWN_KEYS, REASONING
from trainer.data.types import Message

Paint = Callable[[str, tuple[int, str]], str]

CONTENT, THOUGHT, CALLS, TOOLS = "content", "reasoning", "tool calls", "tool schemas"
SHARED = -1
"""The turn of what all turns share."""
LINKS = frozenset({"id", "tool_call_id", "type", "role"})
"""Keys whose values templates test; they link turns and tell no model anything by themselves."""
DESCRIBED = frozenset({"name", "description"})


@dataclass(frozen=True, slots=True)
class Form:
    """How turns are handed to a template."""

    reasoning: str = ""
    """Key of the reasoning; `content` for <think> tags, empty for as its row has it."""
    text_arguments: bool = False
    """Arguments of calls as JSON text instead of objects."""
    parts: bool = False
    """Contents as a list of parts of text."""
    developer: str = "developer"
    """Role that turns of the developer get."""


def keep(text: str, place: tuple[int, str]) -> str:
    """Return the text; the paint of a rendering without colours."""
    del place
    return text


def hand_turns(messages: list[Message], form: Form, paint: Paint = keep) -> list[Message]:
    """Return the turns as a template reads them, every string of them painted."""
    return [_turn(message, turn, form, paint) for turn, message in enumerate(messages)]


def hand_tools(tools: list[Any] | None, paint: Paint = keep) -> list[Any] | None:
    """Return the tool schemas, their names and descriptions painted."""
    return None if tools is None else [_schema(tool, paint) for tool in tools]


def _turn(message: Message, turn: int, form: Form, paint: Paint) -> Message:
    role = form.developer if message["role"] == "developer" else message["role"]
    handed: Message = {"role": role}
    content = paint(message["content"], (turn, CONTENT))
    if REASONING in message:
        origin, opening, closing = message[ORIGIN]
        reasoning = paint(message[REASONING], (turn, THOUGHT))
        key = form.reasoning or origin
        if key == "content":
            content = f"{opening}{reasoning}{closing}{content}"
        else:
            handed[key] = reasoning
    handed["content"] = [{"type": "text", "text": content}] if form.parts else content
    for key, value in message.items():
        if key == "tool_calls":
            handed[key] = [_call(call, turn, form, paint) for call in value]
        elif key not in ("role", "content") and key not in OWN_KEYS:
            is_text = isinstance(value, str) and key not in LINKS
            handed[key] = paint(value, (turn, f"`{key}`")) if is_text else value
    return handed


def _call(call: dict[str, Any], turn: int, form: Form, paint: Paint) -> dict[str, Any]:
    function = call["function"]
    arguments = _leaves(function["arguments"], lambda text: paint(text, (turn, CALLS)))
    if form.text_arguments and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    name = paint(function["name"], (turn, CALLS))
    return {**call, "function": {**function, "name": name, "arguments": arguments}}


def _leaves(value: Any, paint: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return paint(value)
    if isinstance(value, dict):
        return {key: _leaves(inner, paint) for key, inner in value.items()}
    if isinstance(value, list):
        return [_leaves(inner, paint) for inner in value]
    return value


def _schema(value: Any, paint: Paint) -> Any:
    if isinstance(value, dict):
        return {
            key: paint(inner, (SHARED, TOOLS))
            if key in DESCRIBED and isinstance(inner, str)
            else _schema(inner, paint)
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [_schema(inner, paint) for inner in value]
    return value
