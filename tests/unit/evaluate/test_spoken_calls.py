"""Tool calls are read back from what every chat template writes of them; half a call is none."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests.helpers.chat_shapes import LEARN, SHAPES, STOP, unmarked
from tests.helpers.tokenizers import make_tokenizer
from trainer.data.chat.hand import hand_tools, hand_turns
from trainer.data.chat.rendering import render_whole
from trainer.data.chat.settle import settle_chat
from trainer.data.chat.shape import find_shape
from trainer.data.types import ChatDocument
from trainer.evaluate.tasks.spoken_calls import SpokenCall, has_same_names, is_same, read_calls

ARGUMENTS = {
    "city": "Paris",
    "days": 2,
    "units": {"wind": ["kn", None]},
    "exact": True,
    "note": 'a "b" \u00e9',
}
TOOL = {"type": "function", "function": {"name": "get_weather", "description": "d", "parameters": {}}}


def spoken(name: str) -> str | None:
    """Return what a template writes of a turn with a call, between its marks; None where it writes none."""
    call = {
        "type": "function",
        "id": "abcdefghi",
        "function": {"name": "get_weather", "arguments": ARGUMENTS},
    }
    turns = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    document = settle_chat(ChatDocument(turns, [TOOL]), Counter())
    assert document is not None
    tokenizer = make_tokenizer(unmarked(SHAPES[name]))
    form = render_whole(document, tokenizer, find_shape(tokenizer), Counter())
    if form.lost():
        return None
    marked = make_tokenizer(SHAPES[name])
    text = marked.render_chat(hand_turns(form.document.messages, form.form), hand_tools([TOOL]))
    return text.partition(LEARN)[2].partition(STOP)[0]


@pytest.mark.parametrize("name", SHAPES)
def test_what_a_template_writes_of_a_call_is_read_back(name: str) -> None:
    text = spoken(name)
    if text is None:
        return
    assert read_calls(text) == [SpokenCall("get_weather", ARGUMENTS)], text


def test_most_templates_that_write_calls_are_among_them() -> None:
    assert sum(spoken(name) is not None for name in SHAPES) >= 12


CITY = SpokenCall("f", {"city": "Paris"})


@pytest.mark.parametrize(
    ("said", "calls"),
    [
        (
            '<think>\nuse f</think>\n<tool_call>\n{"name": "f", "arguments": {"city": "Paris"}}\n</tool_call>',
            [CITY],
        ),
        (
            'use f</think><tool_call>{"name": "f", "arguments": {"city": "Paris"}}</tool_call><|im_end|>',
            [CITY],
        ),
        ('Let me look. <tool_call>{"name": "f", "arguments": "{\\"city\\": \\"Paris\\"}"}', [CITY]),
        ('<tool_call>[{"name": "f", "arguments": {"city": "Paris"}}]</tool_call>', [CITY]),
        (
            '<tool_call>{"name": "f", "arguments": {"city": "Paris"}}</tool_call>\n'
            '<tool_call>{"name": "g", "arguments": {}}</tool_call>',
            [CITY, SpokenCall("g", {})],
        ),
        ("<tool_call>f\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n</tool_call>", [CITY]),
        (
            "<tool_call>\n<function=f>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>",
            [CITY],
        ),
        (
            '<minimax:tool_call>\n<invoke name="f">\n<parameter name="city">Paris</parameter>\n</invoke>\n'
            "</minimax:tool_call>",
            [CITY],
        ),
        ('[TOOL_CALLS] [{"name": "f", "arguments": {"city": "Paris"}, "id": "a12345678"}]</s>', [CITY]),
        (
            '[TOOL_CALLS]f[CALL_ID]abc[ARGS]{"city": "Paris"}[TOOL_CALLS]g[ARGS]{}',
            [CITY, SpokenCall("g", {})],
        ),
        (
            "<\uff5ctool\u2581calls\u2581begin\uff5c><\uff5ctool\u2581call\u2581begin\uff5c>function"
            '<\uff5ctool\u2581sep\uff5c>f\n```json\n{"city": "Paris"}\n```<\uff5ctool\u2581call\u2581end\uff5c>',
            [CITY],
        ),
        (
            '<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{"city": "Paris"}<|tool_call_end|>',
            [CITY],
        ),
        (
            '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"city": "Paris"}<|call|>',
            [CITY],
        ),
        ('<|python_tag|>{"name": "f", "parameters": {"city": "Paris"}}<|eom_id|>', [CITY]),
        ('{"type": "function", "function": {"name": "f", "arguments": {"city": "Paris"}}}', [CITY]),
        ('```json\n{"name": "f", "arguments": {"city": "Paris"}}\n```', [CITY]),
        (
            '{"name": "f", "parameters": {"city": "Paris"}}; {"name": "g", "parameters": null}',
            [CITY, SpokenCall("g", {})],
        ),
        ("[f(city='Paris')]", [CITY]),
        ("<function_calls>f(city='Paris')\ng()</function_calls>", [CITY, SpokenCall("g", {})]),
        # Of these there is no call, or none that all would read the same way.
        ("It is sunny in Paris.", []),
        ("", []),
        ('<think>I call <tool_call>{"name": "f", "arguments": {}}</tool_call>', []),
        ('<tool_call>{"name": "f", "arguments": {"city": </tool_call>', []),
        ('<tool_call>{"name": "f", "arguments": {}}</tool_call><tool_call>{"name"</tool_call>', []),
        ('<tool_call>{"name": "f", "arguments": ["Paris"]}</tool_call>', []),
        ('<tool_call>{"arguments": {"city": "Paris"}}</tool_call>', []),
        ('{"name": "Paris"}', []),
        ('{"name": "f", "arguments": {}} and more', []),
        ("[1, 2]", []),
        ("[f(__import__('os'))]", []),
        ("[f(city=g())]", []),
        ("<tool_call>f\n<arg_key>city</arg_key>", []),
        ("[" * 100_000, []),
    ],
)
def test_calls_of_an_answer(said: str, calls: list[SpokenCall]) -> None:
    assert read_calls(said) == calls


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"a": 1, "b": [2]}, {"b": [2.0], "a": 1.0}, True),
        ({"a": 1}, {"a": True}, False),
        ({"a": 1}, {"a": "1"}, False),
        ({"a": None}, {}, False),
        ({"a": [1, 2]}, {"a": [2, 1]}, False),
    ],
)
def test_arguments_are_compared_as_json(one: dict[str, Any], other: dict[str, Any], same: bool) -> None:
    assert is_same([SpokenCall("f", one)], [SpokenCall("f", other)]) is same
    assert has_same_names([SpokenCall("f", one)], [SpokenCall("f", other)])


def test_calls_of_a_turn_may_come_in_any_order_but_as_often() -> None:
    f, g = SpokenCall("f", {}), SpokenCall("g", {})
    assert is_same([f, g], [g, f]) and not is_same([f], [f, f]) and not is_same([f], [g])
    assert not has_same_names([f, f], [f, g])
