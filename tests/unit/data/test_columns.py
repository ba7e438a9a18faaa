"""Which columns are read, what is taken by itself, and what is never left out without a word."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.config.data import ColumnsConfig, Format, SourceConfig
from trainer.data.chat.notes import describe_chats
from trainer.data.rows.document import parse_row
from trainer.data.rows.files import Listing, list_files
from trainer.data.rows.source import read_files
from trainer.data.store.intake import describe_drops
from trainer.data.types import (
    ChatDocument,
    CompletionDocument,
    Document,
    IdsDocument,
    RowError,
    TextDocument,
)
from trainer.errors import DataError

TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
GPT = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
SYSTEM = {"role": "system", "content": "s"}
TOOL = {"type": "function", "function": {"name": "f"}}
COMPLETION, CHAT, IDS = {"format": Format.completion}, {"format": Format.chat}, {"format": Format.ids}
AS_CHAT = {**COMPLETION, "as_chat": True}


def read(
    tmp_path: Path, rows: list[Any], **options: Any
) -> tuple[list[Document | None], list[str], Counter[str]]:
    """Return the documents of rows, what is said of them, and the counts of what was dropped."""
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = SourceConfig(path=str(tmp_path / "a.jsonl"), **options)
    opened = read_files("s", source, list_files("s", source))
    counts: Counter[str] = Counter()
    documents = [parse_row(row, opened.source, counts) for batch in opened.batches() for row in batch.rows]
    return documents, opened.reading.to_lines(), +counts


# ---- layouts


@pytest.mark.parametrize(
    ("row", "options", "document", "said"),
    [
        ({"content": "x"}, {}, TextDocument("x"), "text=content"),
        ({"conversations": GPT}, CHAT, ChatDocument(TURNS), "ShareGPT"),
        ({"conversations": GPT, "system": "s"}, CHAT, ChatDocument([SYSTEM, *TURNS]), "system=system"),
        ({"messages": TURNS, "tools": [TOOL]}, CHAT, ChatDocument(TURNS, [TOOL]), "tools=tools"),
        ({"messages": TURNS, "tools": [json.dumps(TOOL)]}, CHAT, ChatDocument(TURNS, [TOOL]), "tools=tools"),
        ({"messages": TURNS, "tools": json.dumps([TOOL])}, CHAT, ChatDocument(TURNS, [TOOL]), "tools=tools"),
        ({"messages": TURNS, "tools": None}, CHAT, ChatDocument(TURNS), "tools=tools"),
        ({"instruction": "p", "output": "c"}, COMPLETION, CompletionDocument("p", "c"), "Alpaca"),
        (
            {"instruction": "p", "input": "i", "output": "c"},
            COMPLETION,
            CompletionDocument("p\n\ni", "c"),
            "input=input",
        ),
        (
            {"instruction": "p", "input": "", "output": "c"},
            COMPLETION,
            CompletionDocument("p", "c"),
            "input=input",
        ),
        (
            {"instruction": "p", "context": "i", "response": "c", "category": "x"},
            COMPLETION,
            CompletionDocument("p\n\ni", "c"),
            "input=context",
        ),
        ({"query": "p", "response": "c"}, COMPLETION, CompletionDocument("p", "c"), "query and response"),
        ({"question": "p", "answer": "c"}, COMPLETION, CompletionDocument("p", "c"), "question and answer"),
        ({"input": "p", "output": "c"}, COMPLETION, CompletionDocument("p", "c"), "input and output"),
        (
            {"system_prompt": "s", "question": "p", "response": "c"},
            COMPLETION,
            CompletionDocument("s\n\np", "c"),
            "system=system_prompt",
        ),
        ({"question": "a", "answer": "b"}, AS_CHAT, ChatDocument(TURNS), "question and answer"),
        ({"input_ids": [5, 6], "labels": [-100, 6]}, IDS, IdsDocument([5, 6], [0, 1]), "labels=labels"),
        (
            {"input_ids": [5, 6], "completion_mask": [0, 1]},
            IDS,
            IdsDocument([5, 6], [0, 1]),
            "loss_mask=completion_mask",
        ),
        (
            {"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "assistant_masks": [1, 1, 0]},
            IDS,
            IdsDocument([5, 6, 7], [0, 1, 0]),
            "loss_mask=assistant_masks, labels=labels",
        ),
        (
            {"input_ids": [0, 5, 6, 0], "attention_mask": [0, 1, 1, 0], "labels": [-100, -100, 6, -100]},
            IDS,
            IdsDocument([5, 6], [0, 1]),
            "attention_mask=attention_mask",
        ),
    ],
)
def test_a_layout_in_common_use_is_taken_whole_and_told(
    row: dict[str, Any], options: dict[str, Any], document: Document, said: str, tmp_path: Path
) -> None:
    documents, lines, _ = read(tmp_path, [row], **options)
    assert documents == [document]
    assert any(said in line for line in lines), lines


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": TURNS[:1], "completion": TURNS[1:]},
        {"prompt": "a", "completion": TURNS[1:]},
        {"prompt": TURNS[:1], "completion": "b"},
        {"prompt": GPT[:1], "completion": GPT[1:]},
    ],
)
def test_prompt_and_completion_may_be_turns(row: dict[str, Any], tmp_path: Path) -> None:
    assert read(tmp_path, [row], **AS_CHAT)[0] == [ChatDocument(TURNS)]


@pytest.mark.parametrize(
    ("row", "options", "hint"),
    [
        ({"conversations": GPT}, {}, "look like ShareGPT: set data.sources.s.format=chat"),
        ({"messages": TURNS}, COMPLETION, "look like OpenAI messages: set data.sources.s.format=chat"),
        ({"instruction": "p", "output": "c"}, CHAT, "look like Alpaca: set data.sources.s.format=completion"),
        (
            {"prompt": [], "completion": []},
            CHAT,
            "data.sources.s.format=completion data.sources.s.as_chat=true",
        ),
        ({"input_ids": [1]}, {}, "look like token ids: set data.sources.s.format=ids"),
    ],
)
def test_rows_of_another_format_are_refused_with_that_format(
    row: dict[str, Any], options: dict[str, Any], hint: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, [row], **options)
    assert hint in str(caught.value)


def test_a_column_that_the_user_names_is_never_replaced(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"columns\.messages` must name a column"):
        read(tmp_path, [{"conversations": GPT}], **CHAT, columns=ColumnsConfig(messages="dialogue"))


# ---- what is not read


@pytest.mark.parametrize(
    ("extra", "options"),
    [
        ({"functions": [TOOL]}, CHAT),
        ({"history": [["x", "y"]]}, CHAT),
        ({"conversations": GPT}, CHAT),
        ({"instruction": "not in the turns"}, CHAT),
        ({"reasoning": "because"}, CHAT),
        ({"weight": 0}, CHAT),
        ({"train": False}, CHAT),
        ({"images": ["x.png"]}, CHAT),
        ({"System_Prompt": "s"}, CHAT),
        ({"context": "c"}, COMPLETION),
        ({"input": "i"}, COMPLETION),
        ({"tools": [TOOL]}, COMPLETION),
        ({"chosen": "x"}, COMPLETION),
        ({"assistant_mask": [1]}, IDS),
        ({"position_ids": [0]}, IDS),
        ({"loss_mask": [1]}, {}),
        ({"los_mask": [1]}, IDS),
        ({"loss-masks": [1]}, IDS),
        ({"completoin_mask": [1]}, IDS),
        ({"SystemPrompt": "s"}, CHAT),
        ({" weight ": 0.5}, CHAT),
    ],
)
def test_a_column_that_changes_what_is_learnt_is_not_left_out_without_a_word(
    extra: dict[str, Any], options: dict[str, Any], tmp_path: Path
) -> None:
    base = {"text": "t", "messages": TURNS, "prompt": "p", "completion": "q", "input_ids": [1]}
    keys = {Format.text: ["text"], Format.chat: ["messages"], Format.ids: ["input_ids"]}
    row = {key: base[key] for key in keys.get(options.get("format", Format.text), ["prompt", "completion"])}
    (column,) = extra
    with pytest.raises(DataError) as caught:
        read(tmp_path, [row, row | extra], **options)
    assert f"[{column}], which {tmp_path}/a.jsonl, line 2, fills" in str(caught.value)
    assert f"data.sources.s.columns.ignore=[{column}]" in str(caught.value)
    documents, lines, _ = read(
        tmp_path, [row, row | extra], **options, columns=ColumnsConfig(ignore=[column])
    )
    assert len(documents) == 2 and f"columns left unread as asked: {column}" in lines


def test_a_column_whose_name_holds_a_mark_that_nobody_sees_is_not_left_out(tmp_path: Path) -> None:
    """A byte order mark, a zero-width space: the column looks like the mask, and nothing would be masked."""
    for column in ("c\ufeffompletion_mask", "loss_mask\u200b", "\ufeffattention_mask"):
        with pytest.raises(DataError, match="must say what becomes of the column"):
            read(tmp_path, [{"input_ids": [1, 2], column: [0, 1]}], **IDS)


@pytest.mark.parametrize(
    "extra",
    [
        {"id": 5, "url": "x", "meta": {"a": 1}},
        {"tool": "t", "height": 2, "trains": "t", "gloss_masks": [1], "systemprom": "s"},
        {"weight": 1.0, "train": True},
        {"weight": "1", "loss": "true"},
        {"history": [], "functions": None, "images": [None], "reasoning": " "},
        {"prompt": "a", "output": "b"},
    ],
)
def test_columns_that_say_nothing_or_say_it_again_are_one_line(extra: dict[str, Any], tmp_path: Path) -> None:
    documents, lines, _ = read(tmp_path, [{"messages": TURNS, **extra}], **CHAT)
    assert documents == [ChatDocument(TURNS)]
    assert lines == [f"columns that are not read: {', '.join(sorted(extra))}"]


def test_a_column_to_ignore_that_no_row_has_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"columns\.ignore` must name columns .* \[sistem\]"):
        read(tmp_path, [{"text": "x"}], columns=ColumnsConfig(ignore=["sistem"]))


def test_a_system_column_that_is_ignored_is_not_read(tmp_path: Path) -> None:
    rows = [{"messages": TURNS, "system": "s"}]
    documents, lines, _ = read(tmp_path, rows, **CHAT, columns=ColumnsConfig(ignore=["system"]))
    assert documents == [ChatDocument(TURNS)] and lines == ["columns left unread as asked: system"]


def test_two_columns_that_could_be_the_same_are_not_chosen_between(tmp_path: Path) -> None:
    rows = [{"input_ids": [1], "loss_mask": [1], "completion_mask": [0]}]
    with pytest.raises(
        DataError, match=r"loss_mask` must say which of the columns \[loss_mask, completion_mask\]"
    ):
        read(tmp_path, rows, **IDS)
    columns = ColumnsConfig(loss_mask="completion_mask", ignore=["loss_mask"])
    assert read(tmp_path, rows, **IDS, columns=columns)[0] == [IdsDocument([1], [0])]


def test_optional_columns_of_later_rows_are_read_too(tmp_path: Path) -> None:
    rows = [{"messages": TURNS}, {"messages": TURNS, "system": "s", "tools": [TOOL]}]
    assert read(tmp_path, rows, **CHAT)[0] == [ChatDocument(TURNS), ChatDocument([SYSTEM, *TURNS], [TOOL])]


@pytest.mark.parametrize("column", ["labels", "loss_mask"])
def test_a_mask_that_only_some_rows_have_is_refused(column: str, tmp_path: Path) -> None:
    """Rows without it would be supervised throughout."""
    rows = [{"input_ids": [1], column: [1]}, {"input_ids": [1]}]
    with pytest.raises(DataError, match=f"columns.{column}` must name a column that every row has or none"):
        read(tmp_path, rows, **IDS)


# ---- nulls


def test_rows_without_a_completion_or_a_question_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": c} for c in ("b", "", " \n", None)] + [
        {"prompt": None, "completion": "b"}
    ]
    documents, _, counts = read(tmp_path, rows, **COMPLETION)
    assert documents == [CompletionDocument("a", "b"), None, None, None, CompletionDocument("", "b")]
    assert counts == {"no_completion": 3, "empty_prompts": 1}
    documents, _, counts = read(tmp_path, rows, **AS_CHAT)
    assert documents == [ChatDocument(TURNS), None, None, None, None]
    assert counts == {"no_completion": 3, "no_prompt": 1}
    rows = [{"prompt": TURNS[:1], "completion": [{"role": "assistant", "content": None}]}]
    assert read(tmp_path, rows, **AS_CHAT)[2] == {"no_completion": 1}


def test_a_conversation_that_asks_nothing_is_dropped_and_counted(tmp_path: Path) -> None:
    """One turn of a bot trained without a word, as if the model had begun to speak by itself."""
    rows = [
        {"messages": [{"role": "bot", "content": "b"}]},
        {"messages": [{"role": "user", "content": " "}, {"role": "assistant", "content": "b"}]},
        {"messages": TURNS},
        {"messages": [{"role": "assistant", "content": "Hello."}, *TURNS]},
        {"messages": [SYSTEM, TURNS[1]]},
    ]
    documents, _, counts = read(tmp_path, rows, **CHAT)
    assert [document is None for document in documents] == [True, True, False, False, False]
    assert counts == {"no_question": 2, "other_roles": 1}
    assert describe_drops(counts) == "2 of the assistant alone, without a question"
    assert describe_chats(counts) == [
        "1 turns of the roles bot, model, chatgpt, function or observation, read as the assistant or a tool"
    ]


def test_nulls_of_two_layouts_in_one_table_hide_neither(tmp_path: Path) -> None:
    void = dict.fromkeys(("role", "content", "from", "value"))
    rows = [
        {"messages": [{**void, **turn} for turn in TURNS]},
        {"messages": [{**void, **turn} for turn in GPT]},
        {"messages": [None, *TURNS, void]},
    ]
    documents, _, counts = read(tmp_path, rows, **CHAT)
    assert documents == [ChatDocument(TURNS)] * 3
    assert counts == {"null_turns": 2}


# ---- tables


def read_table(tmp_path: Path, table: Any, **options: Any) -> tuple[list[Document | None], list[str]]:
    pq.write_table(table, tmp_path / "a.parquet")
    source = SourceConfig(path=str(tmp_path / "a.parquet"), **options)
    opened = read_files("s", source, Listing([tmp_path / "a.parquet"]))
    documents = [parse_row(r, opened.source, Counter()) for batch in opened.batches() for r in batch.rows]
    return documents, opened.reading.to_lines()


def test_a_table_is_refused_for_a_column_that_some_row_fills_whatever_its_type(tmp_path: Path) -> None:
    images = pa.array([None, [{"bytes": b"x", "path": None}]])
    table = pa.table(
        {"messages": [TURNS, TURNS], "images": images, "when": pa.array([1, 2], pa.timestamp("s"))}
    )
    with pytest.raises(DataError, match=r"\[images\], which .*a\.parquet, row 2, fills"):
        read_table(tmp_path, table, **CHAT)
    documents, lines = read_table(tmp_path, table.slice(0, 1), **CHAT)
    assert documents == [ChatDocument(TURNS)] and lines == ["columns that are not read: images, when"]


def test_a_table_of_two_layouts_keeps_both(tmp_path: Path) -> None:
    table = pa.table({"messages": [TURNS, GPT]})
    assert read_table(tmp_path, table, **CHAT)[0] == [ChatDocument(TURNS)] * 2


def test_optional_columns_of_a_table_are_taken_by_name_and_nulls_in_them_are_none(tmp_path: Path) -> None:
    table = pa.table(
        {"conversations": [GPT, GPT], "system": ["s", None], "tools": [[json.dumps(TOOL)], None]}
    )
    documents, lines = read_table(tmp_path, table, **CHAT)
    assert documents == [ChatDocument([SYSTEM, *TURNS], [TOOL]), ChatDocument(TURNS)]
    assert "columns read by their usual names: tools=tools, system=system" in lines


def test_a_mask_that_is_null_in_a_row_of_a_table_is_refused(tmp_path: Path) -> None:
    table = pa.table({"input_ids": [[1], [2]], "labels": [[1], None]})
    with pytest.raises(RowError, match="the token id itself, or -100"):
        read_table(tmp_path, table, **IDS)


# ---- masks


@pytest.mark.parametrize(
    ("extra", "rule"),
    [
        ({"labels": [-100, 7]}, "the token id itself, or -100"),
        ({"labels": [6, -100]}, "the token id itself, or -100"),
        ({"labels": [5]}, "the token id itself, or -100"),
        ({"labels": None}, "the token id itself, or -100"),
        ({"loss_mask": [1]}, "a 0 or 1 for every token id"),
        ({"loss_mask": [[1, 1]]}, "a 0 or 1 for every token id"),
        ({"attention_mask": [1, 2]}, "a 0 or 1 for every token id"),
    ],
)
def test_a_mask_that_does_not_fit_its_ids_is_refused(
    extra: dict[str, Any], rule: str, tmp_path: Path
) -> None:
    with pytest.raises(RowError, match=rule):
        read(tmp_path, [{"input_ids": [5, 6], **extra}], **IDS)


def test_padding_inside_of_a_row_is_refused_and_at_its_ends_counted(tmp_path: Path) -> None:
    with pytest.raises(RowError, match="padding at the ends only"):
        read(tmp_path, [{"input_ids": [5, 6, 7], "attention_mask": [1, 0, 1]}], **IDS)
    rows = [
        {"input_ids": [0, 5, 0, 0], "attention_mask": [0, 1, 0, 0]},
        {"input_ids": [0], "attention_mask": [0]},
    ]
    documents, _, counts = read(tmp_path, rows, **IDS)
    assert documents == [IdsDocument([5]), IdsDocument([])] and counts == {"padding_ids": 4}


@pytest.mark.parametrize(
    ("row", "options", "rule"),
    [
        (
            {"messages": [{"role": "user", "from": "gpt", "content": "a"}]},
            CHAT,
            "say one thing as their role",
        ),
        ({"messages": [{"role": "user", "content": "a", "value": "b"}]}, CHAT, "say one thing as their role"),
        ({"messages": [{"role": "user", "content": "a", "name": "\ud83d"}]}, CHAT, "valid Unicode"),
        ({"messages": TURNS, "tools": ["{bad"]}, CHAT, "valid JSON in column 'tools'"),
        ({"messages": TURNS, "tools": [5]}, CHAT, "tool schemas that are objects"),
        ({"messages": TURNS, "tools": [None]}, CHAT, "tool schemas that are objects"),
        ({"messages": "[{'role': 'user'}]"}, CHAT, "a list of messages in column 'messages'"),
        ({"prompt": TURNS, "completion": TURNS[1:]}, AS_CHAT, "no assistant turn in column 'prompt'"),
        ({"prompt": TURNS[:1], "completion": "x"}, COMPLETION, "text in column 'prompt'"),
    ],
)
def test_a_row_that_says_two_things_or_none_is_refused(
    row: dict[str, Any], options: dict[str, Any], rule: str, tmp_path: Path
) -> None:
    with pytest.raises(RowError, match=rule):
        read(tmp_path, [row], **options)


@pytest.mark.parametrize(
    ("turns", "value", "fix"),
    [
        ([{"role": "user", "text": "a"}], "keys [role, text]", "Rename 'text' to 'content'"),
        (
            [{"role": "user", "content": None, "body": "a"}],
            "keys [role, content, body]",
            "Rename 'body' to 'content'",
        ),
        ([{"from": "human", "text": "a"}], "keys [from, text]", "Rename 'text' to 'value'"),
        ([{"role": "user", "parts": [{"text": "a"}]}], "keys [role, parts]", "Rename 'parts' to 'content'"),
        (
            [{"role": "tool", "name": "f", "output": "9"}],
            "keys [role, name, output]",
            "Rename 'output' to 'content'",
        ),
        ([{"speaker": "user", "content": "a"}], "'speaker': 'user'", "Rename 'speaker' to 'role'"),
    ],
)
def test_a_message_that_says_it_under_another_key_is_told_which(
    turns: list[Any], value: str, fix: str, tmp_path: Path
) -> None:
    """They were taken for conversations of the assistant alone, and dropped."""
    with pytest.raises(RowError) as caught:
        read(tmp_path, [{"messages": [*turns, TURNS[1]]}], **CHAT)
    assert value in caught.value.value and caught.value.fix.startswith(fix)


def test_a_message_that_only_calls_or_thinks_needs_no_content(tmp_path: Path) -> None:
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}], "note": "x"}
    result = {"role": "tool", "name": "f", "content": "9"}
    void = {"role": "user", "content": None, "metadata": {"a": "b"}, "tags": [], "images": [{"url": "x"}]}
    documents, _, _ = read(tmp_path, [{"messages": [TURNS[0], call, result, void, TURNS[1]]}], **CHAT)
    assert documents[0] is not None


def test_columns_of_text_are_advised_and_not_ids_and_numbers(tmp_path: Path) -> None:
    """The first column was taken for the prompt: that of a data frame's numbers."""
    lines = [",topic_no,ask,reply,kind,when", "0,7,Why is it so?,Because it is.,faq,2026-01-02"]
    lines += ["1,8,And what else is there?,Nothing at all.,faq,2026-01-03"]
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    source = SourceConfig(path=str(tmp_path / "a.csv"), format=Format.completion)
    with pytest.raises(DataError, match=r"columns\.prompt=ask data\.sources\.s\.columns\.completion=reply"):
        list(read_files("s", source, list_files("s", source)).batches())
