"""Reads the values of a row's columns, or says which rule they break. Pure."""

from __future__ import annotations

from typing import Any

from trainer.data.formats.json import JsonError, parse_json
from trainer.data.rows.message import MEND, short, valid_text
from trainer.data.types import RowError

Row = dict[str, Any]


def text_cell(row: Row, column: str) -> str:
    """Return the text of a column; empty where there is none.

    Raises:
        RowError: If it is something else.
    """
    value = row.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        fix = "Turn texts into turns with as_chat=true of the source." if isinstance(value, list) else MEND
        raise RowError(f"hold text in column '{column}'", short(value), fix)
    return valid_text(value)


def list_cell(row: Row, column: str, what: str) -> list[Any]:
    """Return the list of a column, which tables may keep as JSON; empty where there is none.

    Raises:
        RowError: If it is something else, or holds text that cannot be encoded.
    """
    value = row.get(column)
    rule = f"hold a list of {what} in column '{column}'"
    if isinstance(value, str):
        value = parsed_cell(value, rule) if value.strip() else []
    if value is None:
        return []
    if not isinstance(value, list):
        raise RowError(rule, short(value), MEND)
    if not _is_encodable(value):
        raise RowError(f"hold valid Unicode text in column '{column}'", short(value), MEND)
    return value


def unfolded(value: Any) -> Any:
    """Return the turns that a text spells, as tables keep them, or the {messages}; any other value as it is.

    A conversation that was read as the text of an answer would be learnt with its prompt, roles and brackets.
    """
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        found = parse_json(value)
    except JsonError:
        return value
    if isinstance(found, dict):
        return found if isinstance(found.get("messages"), list) or _is_turn(found) else value
    return found if isinstance(found, list) and any(map(_is_turn, found)) else value


def _is_turn(value: Any) -> bool:
    return isinstance(value, dict) and ("role" in value or "from" in value)


def prompt_text(row: Row, prompt: str, more: str | None) -> str:
    """Return the text of a prompt's column and, behind a blank line, that of the column beside it."""
    parts = [text_cell(row, prompt), text_cell(row, more) if more else ""]
    return "\n\n".join(part for part in parts if part)


def parsed_cell(text: str, rule: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        RowError: If it is none.
    """
    try:
        return parse_json(text)
    except JsonError as error:
        fix = "Write the value with a JSON library, such as Python's json.dumps."
        raise RowError(rule, f"{short(text)}, which is {error}", fix) from None


def _is_encodable(value: Any) -> bool:
    """Say whether all text in a value can be encoded: JSON can spell half a surrogate pair."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return False
        return True
    if isinstance(value, dict):
        return all(_is_encodable(key) and _is_encodable(inner) for key, inner in value.items())
    if isinstance(value, list):
        is_ids = bool(value) and type(value[0]) is int
        return is_ids or all(map(_is_encodable, value))
    return True
