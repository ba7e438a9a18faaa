"""Tool calls are compared with the tools of their row, and results with the calls; what is wrong is said or counted."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.helpers.chat_shapes import SHAPES, unmarked
from tests.helpers.tokenizers import make_tokenizer
from trainer.config.data import DataConfig, Format, SourceConfig
from trainer.config.learn import LearnConfig, ToolCalls
from trainer.data.chat.calls import CallError, check_calls
from trainer.data.chat.settle import settle_chat
from trainer.data.prepare import prepare
from trainer.data.store.prepared import shaping_options
from trainer.data.store.store import Store
from trainer.data.types import ChatDocument, Message, RowDropped
from trainer.errors import DataError

ASKED: Message = {"role": "user", "content": "Weather in Paris?"}
SAID: Message = {"role": "assistant", "content": "Sunny."}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1}},
    "required": ["city"],
    "additionalProperties": False,
}


def tool(schema: Any = SCHEMA, name: str = "weather") -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": "d", "parameters": schema}}


def call(arguments: Any, name: str = "weather", **more: Any) -> dict[str, Any]:
    return {"type": "function", **more, "function": {"name": name, "arguments": arguments}}


def calling(*calls: dict[str, Any]) -> Message:
    return {"role": "assistant", "content": "", "tool_calls": list(calls)}


def result(said: str = "sunny", **more: Any) -> Message:
    return {"role": "tool", "content": said, **more}


def check(turns: list[Message], tools: list[Any] | None, checks: ToolCalls = ToolCalls.error) -> Counter[str]:
    counts: Counter[str] = Counter()
    document = settle_chat(ChatDocument([ASKED, *turns], tools), Counter())
    assert document is not None
    check_calls(document, checks, counts)
    return counts


GOOD = call({"city": "Paris", "days": 2})


@pytest.mark.parametrize(
    ("turns", "tools"),
    [
        ([calling(GOOD)], [tool()]),
        ([calling(call('{"city": "Paris"}'))], [tool()]),
        ([calling(GOOD)], [{"name": "weather", "input_schema": SCHEMA}]),
        ([calling(GOOD)], [{"name": "weather", "parameters": json.dumps(SCHEMA)}]),
        ([calling(call({"any": 1}))], [{"name": "weather"}]),
        ([calling(GOOD)], [{"type": "web_search"}, tool()]),
        # A table gives every schema the keys of all.
        (
            [calling(GOOD)],
            [
                tool(
                    {
                        **SCHEMA,
                        "properties": {"city": {"type": "string", "enum": None}, "days": {}, "x": None},
                    }
                )
            ],
        ),
        ([calling(call({"city": None}))], [tool({"properties": {"city": {"const": None}}})]),
        # Of two tools of a name, one takes the call.
        ([calling(call({"city": "x"}))], [tool({"required": ["other"]}), tool()]),
        ([calling(call({"city": "x"}, id="1")), result(tool_call_id="1"), SAID], [tool()]),
        (
            [
                calling(call({"city": "x"}, id="1"), call({"city": "y"}, id="2")),
                result(tool_call_id="2"),
                result(tool_call_id="1"),
                SAID,
            ],
            [tool()],
        ),
        ([calling(call({"city": "x"})), result(), SAID], [tool()]),
        ([calling(call({"city": "x"}), call({"city": "y"})), result("both"), SAID], [tool()]),
        # Calls that stand in the text are not seen.
        ([{"role": "assistant", "content": "<tool_call>{}</tool_call>"}, result(), SAID], [tool()]),
        ([calling(call({"city": "x"}, id="1")), result(), SAID], [tool()]),
        ([calling(call({"city": "x"})), result(tool_call_id="1"), SAID], [tool()]),
    ],
)
def test_sound_calls_pass(turns: list[Message], tools: list[Any]) -> None:
    calls = sum(len(turn.get("tool_calls", [])) for turn in turns)
    assert check(turns, tools)["calls_checked"] == calls


@pytest.mark.parametrize(
    ("turns", "tools", "cause", "words"),
    [
        ([calling(call({}, "wether"))], [tool()], "unknown_tools", "'wether' among the tools ['weather']"),
        ([calling(call("Paris"))], [tool()], "no_object_calls", "'weather' with 'Paris'"),
        ([calling(call([1]))], None, "no_object_calls", "[1]"),
        ([calling(call({"days": 1}))], [tool()], "missing_arguments", "'city' is a required property"),
        (
            [calling(call({"city": "x", "days": "2"}))],
            [tool()],
            "bad_arguments",
            "arguments['days'] break it: '2' is not",
        ),
        ([calling(call({"city": "x", "days": 0}))], [tool()], "bad_arguments", "less than the minimum"),
        ([calling(call({"city": "x", "town": 1}))], [tool()], "bad_arguments", "Additional properties"),
        ([calling(GOOD)], [tool({"type": "dict"})], "bad_schemas", "'weather', whose parameters.type break"),
        ([calling(GOOD)], [tool("city")], "bad_schemas", "whose parameters are 'city'"),
        (
            [calling(GOOD)],
            [tool({"city": {"type": "string"}})],
            "bad_schemas",
            "no keyword of JSON Schema, but the keys ['city']",
        ),
        ([SAID], [tool({"type": 5})], "bad_schemas", "the tool 'weather'"),
        ([calling(GOOD)], [tool({"$ref": "http://127.0.0.1:9/x.json"})], "bad_schemas", "refers to"),
        ([calling(GOOD)], [tool({"$ref": "#"})], "bad_schemas", "refers to itself without end"),
        (
            [calling(call({}, id="1"), call({}, id="1"))],
            [tool({})],
            "repeated_calls",
            "the ids ['1', '1'] in turn 2",
        ),
        (
            [calling(call({}, id="1")), result(tool_call_id="2"), SAID],
            [tool({})],
            "unasked_results",
            "turn 3, a result for '2'",
        ),
        ([calling(call({})), result(), result(), SAID], [tool({})], "unasked_results", "turn 4"),
        (
            [calling(call({}, id="1")), result(tool_call_id="1"), result(tool_call_id="1"), SAID],
            [tool({})],
            "unasked_results",
            "turn 4",
        ),
        ([result(tool_call_id="1"), SAID], None, "unasked_results", "turn 2 that answers '1'"),
        ([calling(call({}, id="7")), SAID], [tool({})], "unanswered_calls", "the call '7' before turn 3"),
    ],
)
def test_what_is_wrong_has_a_cause(
    turns: list[Message], tools: list[Any] | None, cause: str, words: str
) -> None:
    with pytest.raises(CallError) as refused:
        check(turns, tools)
    assert refused.value.cause == cause and words in refused.value.value
    with pytest.raises(RowDropped) as left_out:
        check(turns, tools, ToolCalls.drop)
    assert left_out.value.cause == cause
    assert not check(turns, tools, ToolCalls.unchecked)


def test_a_null_that_a_table_filled_in_is_told_as_one() -> None:
    with pytest.raises(CallError, match="'weather'") as refused:
        check([calling(call({"city": "x", "days": None}))], [tool()])
    assert "keep arguments as JSON text" in refused.value.fix


def test_calls_without_a_list_of_tools_are_counted() -> None:
    assert check([calling(GOOD)], None) == {"calls_unlisted": 1}


ROWS = [
    {"messages": [ASKED, calling(GOOD)], "tools": [tool()]},
    {"messages": [ASKED, calling(call({"days": 1}))], "tools": [tool()]},
    {"messages": [ASKED, SAID]},
    {"messages": [ASKED, calling(call({"days": 2}))], "tools": [tool()]},
    {"messages": [ASKED, calling(call({}, "x"))], "tools": [tool()]},
]


def prepared(tmp_path: Path, checks: ToolCalls, **more: Any) -> tuple[Store, str]:
    file = tmp_path / "calls.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    source = SourceConfig(path=str(file), format=Format.chat, learn=LearnConfig(tool_calls=checks), **more)
    data = DataConfig({"s": source}, 2048, cache_dir=str(tmp_path / "c"), num_workers=1, validation_frac=0.0)
    tokenizer, shown = make_tokenizer(unmarked(SHAPES["qwen25"])), io.StringIO()
    store = prepare(data, tokenizer, lambda: tokenizer, None, Console(file=shown, width=400))["s"]
    return store, shown.getvalue()


def test_prepare_refuses_wrong_calls_by_cause_and_place(tmp_path: Path) -> None:
    with pytest.raises(DataError) as refused:
        prepared(tmp_path, ToolCalls.error)
    said = str(refused.value)
    assert (
        "`data.sources.s` must have tool calls with every required argument, but 2 of 5 rows do not" in said
    )
    assert "calls.jsonl, line 2, with the call of 'weather'" in said
    assert "must call only tools that they list, but 1 of 5 rows does not" in said and "line 5" in said
    assert "learn.tool_calls" in said
    assert not [*(tmp_path / "c").rglob("meta.json")]


def test_prepare_drops_wrong_calls_and_names_the_rows(tmp_path: Path) -> None:
    store, shown = prepared(tmp_path, ToolCalls.drop)
    assert store.train.num_documents == 2
    counts = store.meta["counts"]
    assert (counts["missing_arguments"], counts["unknown_tools"], counts["calls_checked"]) == (2, 1, 1)
    assert "2 rows with calls that lack a required argument left out, such as " in shown
    assert "line 2 (the call of 'weather'" in shown and "line 4 (" in shown and "line 5 (" in shown
    assert "2 with calls that lack a required argument" in shown  # in the table
    _, again = prepared(tmp_path, ToolCalls.drop)
    assert "line 4 (" in again  # told of a store that is there already


def test_prepare_learns_unchecked_calls(tmp_path: Path) -> None:
    store, _ = prepared(tmp_path, ToolCalls.unchecked)
    assert store.train.num_documents == 5


def test_stores_keep_their_names_where_calls_are_checked() -> None:
    data = DataConfig()
    named = [
        shaping_options(SourceConfig(path="x", learn=LearnConfig(tool_calls=checks)), data)["learn"]
        for checks in ToolCalls
    ]
    assert [learn.get("tool_calls") for learn in named] == [None, ToolCalls.drop, ToolCalls.unchecked]


@pytest.mark.parametrize(("bad", "refused"), [("rejected", False), ("chosen", True)])
def test_calls_of_worse_answers_are_not_looked_at(tmp_path: Path, bad: str, refused: bool) -> None:
    sides = {"chosen": [calling(GOOD)], "rejected": [SAID], bad: [calling(call({"days": 1}))]}
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps({"prompt": [ASKED], "tools": [tool()], **sides}) + "\n")
    source = SourceConfig(path=str(file), format=Format.preference, as_chat=True)
    data = DataConfig({"s": source}, 2048, cache_dir=str(tmp_path / "c"), num_workers=1, validation_frac=0.0)
    tokenizer = make_tokenizer(unmarked(SHAPES["qwen25"]))
    try:
        prepare(data, tokenizer, lambda: tokenizer, None, Console(file=io.StringIO()))
    except DataError as error:
        assert refused and "every required argument" in str(error)
    else:
        assert not refused
