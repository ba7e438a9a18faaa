"""Reads the turns of a row's conversation, in whichever of the usual layouts they are. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any

from trainer.config.data import ColumnsConfig, TokenValue
from trainer.data.rows.cells import Row, list_cell, parsed_cell, text_cell
from trainer.data.rows.message import MEND, ROLES, SELDOM, parse_message, short
from trainer.data.rows.weight import refuse_null
from trainer.data.types import ChatDocument, Message, RowError


def read_turns(raw: list[Any], counts: Counter[str], values: Collection[TokenValue]) -> list[Message]:
    """Parse the turns of a conversation; nulls in the list, as tables pad with, are no turns."""
    said = [turn for turn in raw if turn is not None and not _is_void(turn)]
    counts["null_turns"] += len(raw) - len(said)
    if TokenValue.weight in values:
        for turn in said:
            refuse_null(turn)
    if other := sum(map(_is_seldom, said)):
        counts["other_roles"] += other
    contents = [turn.get("content") or turn.get("value") for turn in said if isinstance(turn, dict)]
    if joined := sum(isinstance(content, list) and len(content) > 1 for content in contents):
        counts["joined_parts"] += joined
    return [parse_message(_one_layout(turn)) for turn in said]


def _is_seldom(turn: Any) -> bool:
    role = turn.get("role") or turn.get("from") if isinstance(turn, dict) else None
    return isinstance(role, str) and role in SELDOM


def _is_void(turn: Any) -> bool:
    return isinstance(turn, dict) and bool(turn) and all(value is None for value in turn.values())


def _one_layout(turn: Any) -> Any:
    """Return a turn without the keys of the other layout: tables that join two give each turn the keys of both."""
    if not isinstance(turn, dict):
        return turn
    for ours, theirs in (("role", "from"), ("content", "value")):
        first, second = turn.get(ours), turn.get(theirs)
        if first is None and second is not None:
            turn = {key: value for key, value in turn.items() if key != ours}
        elif second is not None and ROLES.get(str(first), first) != ROLES.get(str(second), second):
            said = f"{ours} {short(first)} and {theirs} {short(second)}"
            raise RowError("hold turns that say one thing as their role and one as their content", said, MEND)
    return turn


def chat_of(messages: list[Message], row: Row, columns: ColumnsConfig) -> ChatDocument:
    """Return the conversation of these turns, with the system prompt and the tools of its row.

    Raises:
        RowError: If there are two system prompts, or no turn of the assistant.
    """
    system = text_cell(row, columns.system) if columns.system else ""
    if system and not (messages and messages[0]["role"] == "system" and messages[0]["content"] == system):
        if messages and messages[0]["role"] == "system":
            raise RowError(
                f"have the system prompt in one place when there is a column '{columns.system}'",
                "a conversation that begins with another system turn of its own",
                f"Drop one of them, or set columns.ignore=[{columns.system}] of the source.",
            )
        messages = [{"role": "system", "content": system}, *messages]
    if not any(m["role"] == "assistant" for m in messages):
        raise RowError(
            "have an assistant turn in every conversation",
            f"the roles {[m['role'] for m in messages]}",
            "Remove these rows, or map their roles to user and assistant.",
        )
    tools = read_tools(row, columns.tools) if columns.tools else []
    return ChatDocument(messages, tools or None)


def read_tools(row: Row, column: str) -> list[Any]:
    """Return the tool schemas of a row; each may be a JSON string, as tables keep them."""
    tools = []
    for tool in list_cell(row, column, "tools"):
        schema = parsed_cell(tool, f"hold valid JSON in column '{column}'") if isinstance(tool, str) else tool
        if not isinstance(schema, dict):
            raise RowError(f"hold tool schemas that are objects in column '{column}'", short(tool), MEND)
        tools.append(schema)
    return tools
