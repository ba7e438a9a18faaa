"""Turns a row of any format into a document. Pure; says what is wrong with a row, not where it is."""

from __future__ import annotations

import contextlib
import json
from typing import Any, assert_never

from trainer.config.data import ColumnsConfig, Format, SourceConfig
from trainer.data.message import MEND, parse_message, short, valid_text
from trainer.data.types import (
    ChatDocument,
    CompletionDocument,
    Document,
    IdsDocument,
    Message,
    RowError,
    TextDocument,
)


def required_columns(source: SourceConfig) -> dict[str, str]:
    """Map the config keys of the columns that every row must have to their names."""
    columns = source.columns
    match source.format:
        case Format.text:
            return {"text": columns.text}
        case Format.completion:
            return {"prompt": columns.prompt, "completion": columns.completion}
        case Format.chat:
            return {"messages": columns.messages}
        case Format.ids:
            return {"input_ids": columns.input_ids}
        case _:
            assert_never(source.format)


def optional_columns(source: SourceConfig) -> dict[str, str]:
    """Map the config keys of the columns that some row must have to their names."""
    columns = source.columns
    wanted: dict[str, str | None] = {}
    if source.format is Format.chat or (source.format is Format.completion and source.as_chat):
        wanted["tools"] = columns.tools
    if source.format in (Format.chat, Format.completion):
        wanted["system"] = columns.system
    if source.format is Format.ids:
        wanted["loss_mask"] = columns.loss_mask
    return {key: column for key, column in wanted.items() if column is not None}


def parse_row(row: dict[str, Any], source: SourceConfig) -> Document:
    """Turn a row into the document that its source's format says it holds.

    Raises:
        RowError: If the row does not hold it.
    """
    columns = source.columns
    match source.format:
        case Format.text:
            return TextDocument(_text(row, columns.text))
        case Format.completion:
            return _parse_completion(row, columns, source.as_chat)
        case Format.chat:
            messages = [parse_message(m) for m in _list(row, columns.messages, "messages")]
            return _chat(messages, row, columns)
        case Format.ids:
            return _parse_ids(row, columns)
        case _:
            assert_never(source.format)


def _parse_completion(row: dict[str, Any], columns: ColumnsConfig, as_chat: bool) -> Document:
    prompt, completion = _text(row, columns.prompt), _text(row, columns.completion)
    if as_chat:
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
        return _chat(turns, row, columns)
    system = _text(row, columns.system) if columns.system else ""
    return CompletionDocument(f"{system}\n\n{prompt}" if system else prompt, completion)


def _chat(messages: list[Message], row: dict[str, Any], columns: ColumnsConfig) -> ChatDocument:
    system = _text(row, columns.system) if columns.system else ""
    if system:
        if messages and messages[0]["role"] == "system":
            raise RowError(
                f"have the system prompt in one place when columns.system is '{columns.system}'",
                "a conversation that begins with its own system turn",
                "Drop columns.system or the system turns.",
            )
        messages = [{"role": "system", "content": system}, *messages]
    if not any(m["role"] == "assistant" for m in messages):
        raise RowError(
            "have an assistant turn in every conversation",
            f"the roles {[m['role'] for m in messages]}",
            "Remove these rows, or map their roles to user and assistant.",
        )
    tools = _list(row, columns.tools, "tools") if columns.tools else []
    return ChatDocument(messages, tools or None)


def _parse_ids(row: dict[str, Any], columns: ColumnsConfig) -> IdsDocument:
    rule = f"hold a list of token ids in column '{columns.input_ids}'"
    ids = _list(row, columns.input_ids, "input_ids")
    if not all(type(i) is int and 0 <= i < 2**32 for i in ids):
        raise RowError(rule, short(ids), MEND)
    if columns.loss_mask is None:
        return IdsDocument(ids)
    mask = [int(m) if m in (0, 1) else -1 for m in _list(row, columns.loss_mask, "loss_mask")]
    if len(mask) != len(ids) or -1 in mask:
        rule = f"hold a 0 or 1 for every token id in column '{columns.loss_mask}'"
        raise RowError(rule, f"{len(mask)} values for {len(ids)} ids: {short(mask)}", MEND)
    return IdsDocument(ids, mask)


def _text(row: dict[str, Any], column: str) -> str:
    value = row.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RowError(f"hold text in column '{column}'", short(value), MEND)
    return valid_text(value)


def _list(row: dict[str, Any], column: str, what: str) -> list[Any]:
    value = row.get(column)
    if isinstance(value, str):
        with contextlib.suppress(json.JSONDecodeError):
            value = json.loads(value) if value.strip() else []
    if value is None:
        return []
    if not isinstance(value, list):
        raise RowError(f"hold a list of {what} in column '{column}'", short(value), MEND)
    return value
