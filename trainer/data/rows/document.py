"""Turns a row of any format into a document. Pure; says what is wrong with a row, not where it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import assert_never

from trainer.config.data import ColumnsConfig, Format, SourceConfig, TokenValue
from trainer.data.rows.cells import Row, list_cell, prompt_text, text_cell, unfolded
from trainer.data.rows.message import MEND, short
from trainer.data.rows.turns import chat_of, read_turns
from trainer.data.rows.weight import WEIGHT, row_weight
from trainer.data.types import CompletionDocument, Document, IdsDocument, RowError, TextDocument

LABEL = TokenValue.label.value
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
    if document is not None and TokenValue.label in values:
        document.values[LABEL] = 0.0
    return document


def _parse(
    row: Row, source: SourceConfig, counts: Counter[str], values: Collection[TokenValue]
) -> Document | None:
    columns = source.columns
    match source.format:
        case Format.text:
            return TextDocument(text_cell(row, columns.text))
        case Format.completion if source.as_chat:
            return _parse_answer(row, columns, counts, values)
        case Format.completion:
            return _parse_completion(row, columns, counts)
        case Format.chat:
            raw = list_cell(row, columns.messages, "messages")
            document = chat_of(read_turns(raw, counts, values), row, columns)
            if any(turn["role"] != "assistant" and turn["content"].strip() for turn in document.messages):
                return document
            counts["no_question"] += 1
            return None
        case Format.ids:
            return _parse_ids(row, columns, counts)
        case Format.preference | Format.unpaired:
            raise AssertionError("rows of preferences are no documents (rows/preferred.py)")
        case _:
            assert_never(source.format)


def _parse_completion(row: Row, columns: ColumnsConfig, counts: Counter[str]) -> Document | None:
    prompt, completion = prompt_text(row, columns.prompt, columns.input), text_cell(row, columns.completion)
    if not completion.strip():
        counts["no_completion"] += 1
        return None
    counts["empty_prompts"] += not prompt.strip()
    system = text_cell(row, columns.system) if columns.system else ""
    return CompletionDocument(f"{system}\n\n{prompt}" if system else prompt, completion)


def _parse_answer(
    row: Row, columns: ColumnsConfig, counts: Counter[str], values: Collection[TokenValue]
) -> Document | None:
    """Parse prompt and completion as a chat; each is a text or a list of turns."""
    prompt, completion = unfolded(row.get(columns.prompt)), unfolded(row.get(columns.completion))
    if isinstance(prompt, list):
        asked = read_turns(list_cell(row, columns.prompt, "messages"), counts, values)
        if any(turn["role"] == "assistant" for turn in asked):
            raise RowError(
                f"hold no assistant turn in column '{columns.prompt}', where it would be supervised",
                f"the roles {[turn['role'] for turn in asked]}",
                "Write such rows as one list of messages for format=chat.",
            )
        if columns.input and text_cell(row, columns.input):
            rule = f"hold text in column '{columns.prompt}' beside '{columns.input}'"
            raise RowError(rule, short(prompt), MEND)
    else:
        said = prompt_text(row, columns.prompt, columns.input)
        asked = [{"role": "user", "content": said}] if said.strip() else []
    if isinstance(completion, list):
        answer = read_turns(list_cell(row, columns.completion, "messages"), counts, values)
    else:
        said = text_cell(row, columns.completion)
        answer = [{"role": "assistant", "content": said}] if said.strip() else []
    for turns, what in ((answer, "no_completion"), (asked, "no_prompt")):
        if not any(turn["content"].strip() or len(turn) > 2 for turn in turns):
            counts[what] += 1
            return None
    return chat_of([*asked, *answer], row, columns)


def _parse_ids(row: Row, columns: ColumnsConfig, counts: Counter[str]) -> IdsDocument:
    rule = f"hold a list of token ids in column '{columns.input_ids}'"
    ids = list_cell(row, columns.input_ids, "input_ids")
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
    given = list_cell(row, column, "0 or 1")
    bits = [int(bit) if isinstance(bit, int | float) and bit in (0, 1) else -1 for bit in given]
    if len(bits) != len(ids) or -1 in bits:
        rule = f"hold a 0 or 1 for every token id in column '{column}'"
        raise RowError(rule, f"{len(bits)} values for {len(ids)} ids: {short(given)}", MEND)
    return bits


def _supervised(row: Row, column: str, ids: list[int]) -> list[int]:
    labels = list_cell(row, column, "labels")
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
