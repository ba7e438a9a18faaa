from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from trainer.config.data import ColumnsConfig, Format, SourceConfig
from trainer.data.rows import document as document_module
from trainer.data.rows.message import parse_message
from trainer.data.types import ChatDocument, CompletionDocument, Document, IdsDocument, RowError

CHAT = SourceConfig(format=Format.chat)
TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def parse_row(row: dict[str, Any], source: SourceConfig) -> Document | None:
    return document_module.parse_row(row, source, Counter())


def test_sharegpt_turns_become_roles_and_contents() -> None:
    row = {"messages": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
    assert parse_row(row, CHAT) == ChatDocument(TURNS)


def test_a_conversation_may_be_a_json_string_as_in_csv() -> None:
    row = {"messages": '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]'}
    assert parse_row(row, CHAT) == ChatDocument(TURNS)


def test_a_completion_as_chat_becomes_two_turns_with_the_system_column_first() -> None:
    columns = ColumnsConfig(prompt="q", completion="a", system="s")
    source = SourceConfig(format=Format.completion, as_chat=True, columns=columns)
    system = {"role": "system", "content": "x"}
    assert parse_row({"q": "a", "a": "b", "s": "x"}, source) == ChatDocument([system, *TURNS])
    assert parse_row({"q": "a", "a": "b", "s": None}, source) == ChatDocument(TURNS)


def test_a_system_column_stands_before_a_plain_prompt() -> None:
    source = SourceConfig(format=Format.completion, columns=ColumnsConfig(system="s"))
    row = {"prompt": "a", "completion": "b", "s": "x"}
    assert parse_row(row, source) == CompletionDocument("x\n\na", "b")


def test_ids_without_a_mask_are_all_supervised() -> None:
    assert parse_row({"input_ids": [1, 2]}, SourceConfig(format=Format.ids)) == IdsDocument([1, 2])


MASKED = SourceConfig(format=Format.ids, columns=ColumnsConfig(loss_mask="m"))


@pytest.mark.parametrize(
    ("row", "source", "rule"),
    [
        ({"text": 5}, SourceConfig(), "hold text in column 'text'"),
        ({"text": "half \ud83d"}, SourceConfig(), "hold valid Unicode text"),
        ({"messages": TURNS[:1]}, CHAT, "have an assistant turn in every conversation"),
        ({"messages": None}, CHAT, "have an assistant turn in every conversation"),
        ({"messages": "hello"}, CHAT, "hold a list of messages in column 'messages'"),
        ({"messages": ["hello"]}, CHAT, "hold messages of {role, content} or {from, value}"),
        ({"messages": [{"role": "king", "content": "a"}]}, CHAT, "hold messages of the roles"),
        ({"messages": [{"role": ["king"], "content": "a"}]}, CHAT, "hold messages of the roles"),
        ({"messages": [{"role": None, "from": {"is": "king"}}]}, CHAT, "hold messages of the roles"),
        ({"messages": [{"role": "user", "content": 5}]}, CHAT, "hold messages whose content is text"),
        ({"input_ids": [1, -2]}, SourceConfig(format=Format.ids), "hold a list of token ids"),
        ({"input_ids": [1, 2], "m": [1]}, MASKED, "hold a 0 or 1 for every token id"),
        ({"input_ids": [1, 2], "m": [1, 2]}, MASKED, "hold a 0 or 1 for every token id"),
    ],
)
def test_a_row_that_breaks_a_rule_says_which(row: dict[str, Any], source: SourceConfig, rule: str) -> None:
    with pytest.raises(RowError) as caught:
        parse_row(row, source)
    assert caught.value.rule.startswith(rule)


def test_a_system_column_beside_a_system_turn_is_an_error_and_not_a_choice() -> None:
    source = SourceConfig(format=Format.chat, columns=ColumnsConfig(system="s"))
    with pytest.raises(RowError, match="one place"):
        parse_row({"messages": [{"role": "system", "content": "x"}, *TURNS], "s": "y"}, source)


@pytest.mark.parametrize(
    ("role", "fix"), [("User", "Write it 'user' in these rows."), (" GPT", "Write it 'gpt' in these rows.")]
)
def test_a_role_in_other_letters_is_told_how_to_be_written(role, fix) -> None:
    with pytest.raises(RowError) as caught:
        parse_message({"role": role, "content": "Hi"})
    assert caught.value.fix == fix
    assert "user, assistant, system, developer, tool, ipython, human, gpt" in caught.value.rule
