"""Brings the turns of a conversation into one form before any template sees them; counts what it converts. Pure.

A settled turn has its reasoning apart from its content, its calls as OpenAI writes `tool_calls`, and what its
row says about learning it under one key.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from typing import Any

from trainer.data.rows.message import MEND, short, valid_text
from trainer.data.rows.weight import WEIGHT, turn_weight
from trainer.data.types import ChatDocument, Message, RowError

REASONING = "reasoning_content"
"""Where a settled turn has its reasoning."""
ORIGIN = "reasoning_origin"
"""The key that its row has it under; `content` for <think> tags, with the tags and white space around it."""
LEARN = "learn"
"""What the row says about learning a turn: true, false, or absent."""
OWN_KEYS = frozenset({REASONING, ORIGIN, LEARN})

REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
LEARN_KEYS = ("weight", "train", "training", "loss")
UNKNOWN_LEARN_KEYS = ("train_detail", "training_detail", "loss_weight", "loss_scale", "loss_mask", "mask")
THINK = re.compile(r"(\s*<think>\s*)(.*?)(\s*</think>\s*)", re.DOTALL)


def settle_chat(document: ChatDocument, counts: Counter[str]) -> ChatDocument | None:
    """Return the conversation with settled turns; None if it has no answer.

    Where it carries weights, turns may say any; elsewhere only 0 and 1.

    Counts:
        function_calls, flat_calls, null_arguments: turns or calls converted; empty_answers: turns of the assistant
        without a word, which are not learnt, or left out at the end; no_answer: conversations dropped, whose turns are
        not counted beside them.

    Raises:
        RowError: If a turn contradicts itself, or says what nobody can honour.
    """
    of_row = document.values.get(WEIGHT)
    turn_values: dict[int, dict[str, float]] = {}
    messages = []
    for turn, raw in enumerate(document.messages):
        message = dict(raw)
        if of_row is not None and WEIGHT in message:
            turn_values[turn] = {WEIGHT: turn_weight(message[WEIGHT], of_row)}
            message[WEIGHT] = bool(message[WEIGHT])
        messages.append(_settle(message, counts))
    if not any(m["role"] == "assistant" and not _is_empty_answer(m) for m in messages):
        counts["no_answer"] += 1
        return None  # whole: its turns are not counted as well
    while messages and _is_empty_answer(messages[-1]):
        messages.pop()
        counts["empty_answers"] += 1
    for message in messages:
        if _is_empty_answer(message):
            message[LEARN] = False
            counts["empty_answers"] += 1
    return replace(document, messages=messages, turn_values=turn_values)


def _is_empty_answer(message: Message) -> bool:
    if message["role"] != "assistant" or message.get("tool_calls"):
        return False
    return not message["content"].strip() and not message.get(REASONING, "").strip()


def _settle(message: Message, counts: Counter[str]) -> Message:
    _settle_learning(message)
    _settle_calls(message, counts)
    _settle_reasoning(message)
    return message


def _settle_learning(message: Message) -> None:
    for key in UNKNOWN_LEARN_KEYS:
        if key in message:
            rule = f"say what is learnt of a turn with weight, train or loss, not with `{key}`"
            raise RowError(rule, short(message[key]), "Write weight: 0 or weight: 1 on each turn.")
    said = {key: message.pop(key) for key in LEARN_KEYS if key in message}
    for key, value in said.items():
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise RowError(
                f"hold 0, 1, true or false in `{key}` of a turn",
                short(value),
                "Shares of a turn's loss cannot be set; round them, or remove the key.",
            )
    if len({bool(value) for value in said.values()}) > 1:
        raise RowError("say one thing about learning a turn", short(said), MEND)
    if said:
        message[LEARN] = bool(next(iter(said.values())))


def _settle_calls(message: Message, counts: Counter[str]) -> None:
    old = message.pop("function_call", None)
    if isinstance(old, dict) and "tool_calls" not in message:
        message["tool_calls"] = [{"type": "function", "function": dict(old)}]
        counts["function_calls"] += 1
    elif old is not None:
        raise RowError(
            "hold a `function_call` that is an object, and no `tool_calls` beside it", short(old), MEND
        )
    if "tool_calls" not in message:
        return
    if not isinstance(message["tool_calls"], list):
        raise RowError("hold a list of tool calls", short(message["tool_calls"]), MEND)
    message["tool_calls"] = [_settle_call(call, counts) for call in message["tool_calls"]]
    if message["role"] != "assistant":
        raise RowError("have tool calls in turns of the assistant only", f"a call by {message['role']}", MEND)


def _settle_call(call: Any, counts: Counter[str]) -> Any:
    if not isinstance(call, dict):
        raise RowError("hold tool calls that are objects", short(call), MEND)
    if "function" not in call and "name" in call:
        counts["flat_calls"] += 1
        outer = {key: call[key] for key in ("id", "type") if key in call}
        inner = {key: value for key, value in call.items() if key not in outer}
        call = {"type": "function", **outer, "function": inner}
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise RowError("hold tool calls with the name of a function", short(call), MEND)
    arguments = function.get("arguments")
    if arguments is None or (isinstance(arguments, str) and not arguments.strip()):
        counts["null_arguments"] += 1
        arguments = {}
    elif isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            arguments = valid_text(arguments)
        if arguments is None:
            counts["null_arguments"] += 1
            arguments = {}
    return {**call, "function": {**function, "arguments": arguments}}


def _settle_reasoning(message: Message) -> None:
    said = {key: message.pop(key) for key in REASONING_KEYS if key in message}
    for key, value in said.items():
        if not isinstance(value, str):
            raise RowError(f"hold text in `{key}` of a turn", short(value), MEND)
    texts = {valid_text(value): key for key, value in reversed(said.items()) if value.strip()}
    if message["role"] != "assistant":
        if texts:
            raise RowError("have reasoning in turns of the assistant only", short(said), MEND)
        return
    found = THINK.match(message["content"])
    if found:
        opening, text, closing = found.groups()
        if text or not texts:  # empty tags say that there was no reasoning
            texts.setdefault(text, "content")
        message["content"] = message["content"][found.end() :]
        if texts.get(text) == "content":
            message[ORIGIN] = ("content", opening, closing)
    if len(texts) > 1:
        raise RowError("have one reasoning in a turn", short(list(texts)), MEND)
    for text, key in texts.items():
        message[REASONING] = text
        message.setdefault(ORIGIN, (key, "<think>\n", "\n</think>\n\n"))
