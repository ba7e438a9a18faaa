"""Turns a row of any format into a document. Pure; says what is wrong with a row, not where it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any, assert_never

from trainer.config.data import ColumnsConfig, Format, SourceConfig, TokenValue
from trainer.data.formats.json import JsonError, parse_json
from trainer.data.rows.message import MEND, ROLES, SELDOM, parse_message, short, valid_text
from trainer.data.rows.weight import WEIGHT, refuse_null, row_weight
from trainer.data.types import (
    ChatDocument,
    CompletionDocument,
    Document,
    IdsDocument,
    Message,
    RowError,
    TextDocument,
)

Row = dict[str, Any]

NOT_LEARNT = -100
"""The label of a token that is not supervised, as PyTorch has it."""


def parse_row(
    row: Row, source: SourceConfig, counts: Counter[str], values: Collection[TokenValue] = ()
) -> Document | None:
    """Turn a row into the document that its source's format says it holds, or None if it is dropped.

    Args:
        values: The numbers of tokens that its document has to carry.

    Counts:
        no_completion, no_prompt, no_question: rows dropped; empty_prompts, null_turns, other_roles, padding_ids: what
        was met in others.

    Raises:
        RowError: If the row does not hold it.
    """
    document = _parse(row, source, counts, values)
    if document is not None and TokenValue.weight in values:
        column = source.columns.weight
        said = row_weight(row[column], column) if column in row else 1.0
        document.values[WEIGHT] = said
    return document


def _parse(
    row: Row, source: SourceConfig, counts: Counter[str], values: Collection[TokenValue]
) -> Document | None:
    columns = source.columns
    match source.format:
        case Format.text:
            return TextDocument(_text(row, columns.text))
        case Format.completion if source.as_chat:
            return _parse_answer(row, columns, counts, values)
        case Format.completion:
            return _parse_completion(row, columns, counts)
        case Format.chat:
            raw = _list(row, columns.messages, "messages")
            document = _chat(_turns(raw, counts, values), row, columns)
            if any(turn["role"] != "assistant" and turn["content"].strip() for turn in document.messages):
                return document
            counts["no_question"] += 1
            return None
        case Format.ids:
            return _parse_ids(row, columns, counts)
        case _:
            assert_never(source.format)


def _parse_completion(row: Row, columns: ColumnsConfig, counts: Counter[str]) -> Document | None:
    prompt, completion = _prompt(row, columns), _text(row, columns.completion)
    if not completion.strip():
        counts["no_completion"] += 1
        return None
    counts["empty_prompts"] += not prompt.strip()
    system = _text(row, columns.system) if columns.system else ""
    return CompletionDocument(f"{system}\n\n{prompt}" if system else prompt, completion)


def _prompt(row: Row, columns: ColumnsConfig) -> str:
    parts = [_text(row, columns.prompt), _text(row, columns.input) if columns.input else ""]
    return "\n\n".join(part for part in parts if part)


def _parse_answer(
    row: Row, columns: ColumnsConfig, counts: Counter[str], values: Collection[TokenValue]
) -> Document | None:
    """Parse prompt and completion as a chat; each is a text or a list of turns."""
    prompt, completion = row.get(columns.prompt), row.get(columns.completion)
    if isinstance(prompt, list):
        asked = _turns(_list(row, columns.prompt, "messages"), counts, values)
        if any(turn["role"] == "assistant" for turn in asked):
            raise RowError(
                f"hold no assistant turn in column '{columns.prompt}', where it would be supervised",
                f"the roles {[turn['role'] for turn in asked]}",
                "Write such rows as one list of messages for format=chat.",
            )
        if columns.input and _text(row, columns.input):
            rule = f"hold text in column '{columns.prompt}' beside '{columns.input}'"
            raise RowError(rule, short(prompt), MEND)
    else:
        said = _prompt(row, columns)
        asked = [{"role": "user", "content": said}] if said.strip() else []
    if isinstance(completion, list):
        answer = _turns(_list(row, columns.completion, "messages"), counts, values)
    else:
        said = _text(row, columns.completion)
        answer = [{"role": "assistant", "content": said}] if said.strip() else []
    for turns, what in ((answer, "no_completion"), (asked, "no_prompt")):
        if not any(turn["content"].strip() or len(turn) > 2 for turn in turns):
            counts[what] += 1
            return None
    return _chat([*asked, *answer], row, columns)


def _turns(raw: list[Any], counts: Counter[str], values: Collection[TokenValue]) -> list[Message]:
    """Parse the turns of a conversation; nulls in the list, as tables pad with, are no turns."""
    said = [turn for turn in raw if turn is not None and not _is_void(turn)]
    counts["null_turns"] += len(raw) - len(said)
    if TokenValue.weight in values:
        for turn in said:
            refuse_null(turn)
    if other := sum(isinstance(turn, dict) and turn.get("role", turn.get("from")) in SELDOM for turn in said):
        counts["other_roles"] += other
    return [parse_message(_one_layout(turn)) for turn in said]


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


def _chat(messages: list[Message], row: Row, columns: ColumnsConfig) -> ChatDocument:
    system = _text(row, columns.system) if columns.system else ""
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
    tools = _tools(row, columns.tools) if columns.tools else []
    return ChatDocument(messages, tools or None)


def _tools(row: Row, column: str) -> list[Any]:
    """Return the tool schemas of a row; each may be a JSON string, as tables keep them."""
    tools = []
    for tool in _list(row, column, "tools"):
        schema = _parsed(tool, f"hold valid JSON in column '{column}'") if isinstance(tool, str) else tool
        if not isinstance(schema, dict):
            raise RowError(f"hold tool schemas that are objects in column '{column}'", short(tool), MEND)
        tools.append(schema)
    return tools


def _parse_ids(row: Row, columns: ColumnsConfig, counts: Counter[str]) -> IdsDocument:
    rule = f"hold a list of token ids in column '{columns.input_ids}'"
    ids = _list(row, columns.input_ids, "input_ids")
    if not all(type(i) is int and 0 <= i < 2**32 for i in ids):
        raise RowError(rule, short(ids), MEND)
    masks = []
    if columns.loss_mask in row:
        masks.append(_bits(row, columns.loss_mask or "", ids))
    if columns.labels in row:
        masks.append(_supervised(row, columns.labels or "", ids))
    mask = [min(bits) for bits in zip(*masks, strict=True)] if masks else None
    first, last = _unpadded(row, columns.attention_mask, ids)
    counts["padding_ids"] += len(ids) - (last - first)
    return IdsDocument(ids[first:last], None if mask is None else mask[first:last])


def _bits(row: Row, column: str, ids: list[int]) -> list[int]:
    given = _list(row, column, "0 or 1")
    bits = [int(bit) if isinstance(bit, int | float) and bit in (0, 1) else -1 for bit in given]
    if len(bits) != len(ids) or -1 in bits:
        rule = f"hold a 0 or 1 for every token id in column '{column}'"
        raise RowError(rule, f"{len(bits)} values for {len(ids)} ids: {short(given)}", MEND)
    return bits


def _supervised(row: Row, column: str, ids: list[int]) -> list[int]:
    labels = _list(row, column, "labels")
    if len(labels) != len(ids) or any(
        label not in (NOT_LEARNT, token) for label, token in zip(labels, ids, strict=True)
    ):
        raise RowError(
            f"hold in column '{column}' the token id itself, or {NOT_LEARNT}, at the place of every token id",
            f"{len(labels)} labels for {len(ids)} ids: {short(labels)}",
            "Labels are not shifted: position i has the label of token i. Mend them, or give a loss_mask.",
        )
    return [int(label != NOT_LEARNT) for label in labels]


def _unpadded(row: Row, column: str | None, ids: list[int]) -> tuple[int, int]:
    """Return the range of the ids that are no padding."""
    if column is None or row.get(column) is None:
        return 0, len(ids)
    bits = _bits(row, column, ids)
    if 1 not in bits:
        return 0, 0
    first, last = bits.index(1), len(bits) - bits[::-1].index(1)
    if 0 in bits[first:last]:
        raise RowError(f"have padding at the ends only, by column '{column}'", short(bits), MEND)
    return first, last


def _text(row: Row, column: str) -> str:
    value = row.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        fix = "Turn texts into turns with as_chat=true of the source." if isinstance(value, list) else MEND
        raise RowError(f"hold text in column '{column}'", short(value), fix)
    return valid_text(value)


def _list(row: Row, column: str, what: str) -> list[Any]:
    value = row.get(column)
    rule = f"hold a list of {what} in column '{column}'"
    if isinstance(value, str):
        value = _parsed(value, rule) if value.strip() else []
    if value is None:
        return []
    if not isinstance(value, list):
        raise RowError(rule, short(value), MEND)
    if not _is_encodable(value):
        raise RowError(f"hold valid Unicode text in column '{column}'", short(value), MEND)
    return value


def _parsed(text: str, rule: str) -> Any:
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
