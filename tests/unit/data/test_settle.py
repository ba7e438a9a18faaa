"""Turns of the usual layouts come out in one form; what is converted is counted, what is contradictory refused."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from trainer.data.chat.settle import LEARN, REASONING, settle_chat
from trainer.data.types import ChatDocument, Message, RowError

ASKED: Message = {"role": "user", "content": "Q"}


def settle(*turns: Message) -> tuple[list[Message], Counter[str]]:
    counts: Counter[str] = Counter()
    document = settle_chat(ChatDocument([ASKED, *turns]), counts)
    return ([] if document is None else document.messages[1:]), +counts


def said(content: str = "A", **more: Any) -> Message:
    return {"role": "assistant", "content": content, **more}


def call(arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "arguments": arguments}}


@pytest.mark.parametrize(
    ("arguments", "expected", "counted"),
    [
        ('{"x": null}', {"x": None}, {}),
        ({"x": 1}, {"x": 1}, {}),
        (None, {}, {"null_arguments": 1}),
        ("null", {}, {"null_arguments": 1}),
        ("", {}, {"null_arguments": 1}),
        ("not json", "not json", {}),
    ],
)
def test_arguments_of_calls_become_objects(arguments: Any, expected: Any, counted: dict[str, int]) -> None:
    turns, counts = settle(said("", tool_calls=[call(arguments)]))
    assert turns[0]["tool_calls"] == [call(expected)]
    assert counts == counted


def test_old_function_calls_and_flat_calls_become_tool_calls() -> None:
    turns, counts = settle(said("", function_call={"name": "f", "arguments": "{}"}))
    assert turns == [said("", tool_calls=[call({})])] and counts == {"function_calls": 1}
    turns, counts = settle(said("", tool_calls=[{"name": "f", "arguments": {}}]))
    assert turns == [said("", tool_calls=[call({})])] and counts == {"flat_calls": 1}


@pytest.mark.parametrize(
    "turn",
    [
        said("<think>\nwhy\n</think>\n\nA"),
        said(reasoning_content="why"),
        said(reasoning="why"),
        said(thinking="why"),
        said("<think>why</think>A", reasoning_content="why"),
    ],
)
def test_reasoning_is_kept_apart_whatever_its_key(turn: Message) -> None:
    (settled,), _ = settle(turn)
    assert (settled["content"], settled[REASONING]) == ("A", "why")
    assert "reasoning" not in settled and "thinking" not in settled


def test_empty_tags_are_no_words_of_the_answer() -> None:
    (settled,), counts = settle(said("<think>\n\n</think>\n\nA"))
    assert (settled["content"], settled[REASONING]) == ("A", "") and not counts


@pytest.mark.parametrize("key", ["weight", "train", "training", "loss"])
@pytest.mark.parametrize(
    ("value", "learnt"), [(0, False), (False, False), (0.0, False), (1, True), (True, True)]
)
def test_what_a_row_says_about_learning_a_turn_is_noted(key: str, value: Any, learnt: bool) -> None:
    (settled,), _ = settle(said(**{key: value}))
    assert settled == said(**{LEARN: learnt})


@pytest.mark.parametrize(
    "turn",
    [
        said(weight=0.5),
        said(weight="0"),
        said(weight=0, train=True),
        said(train_detail=[]),
        said(reasoning="one", thinking="other"),
        said(reasoning=["parts"]),
        said(function_call="f"),
        said(tool_calls=["f"]),
        said(tool_calls=[{"function": {"arguments": {}}}]),
        {"role": "user", "content": "x", "reasoning": "mine"},
        {"role": "user", "content": "x", "tool_calls": [call({})]},
    ],
)
def test_what_nobody_can_honour_is_refused(turn: Message) -> None:
    with pytest.raises(RowError):
        settle(turn)


def test_empty_answers_are_counted_and_not_taught_as_silence() -> None:
    assert settle(said("")) == ([], {"no_answer": 1}), "once, as what is dropped"
    assert settle(said("A"), ASKED, said(" ")) == ([said("A"), ASKED], {"empty_answers": 1})
    turns, counts = settle(said(""), ASKED, said("A"))
    assert turns == [said("", **{LEARN: False}), ASKED, said("A")] and counts == {"empty_answers": 1}
