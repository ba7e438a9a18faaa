"""Turns a row of preferences into answers to one prompt: pairs of any usual layout, and answers with a label. Pure.

A pair is kept or dropped whole. Where a row has no prompt of its own, the prompt is the turns that both conversations
begin with: turns, never characters.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from trainer.config.data import ColumnsConfig, Format, SourceConfig
from trainer.data.rows.cells import Row, list_cell, prompt_text, text_cell, unfolded
from trainer.data.rows.human_turns import is_human_text, split_text, split_turns
from trainer.data.rows.margin import row_margin
from trainer.data.rows.message import MEND, short
from trainer.data.rows.turns import chat_of, read_tools, read_turns
from trainer.data.types import Answers, ChatDocument, CompletionDocument, Message, RowError

ANSWERING = frozenset({"assistant", "tool", "ipython"})
"""Roles of the turns of an answer."""
LABELS = {"true": True, "false": False, "1": True, "0": False}
NEITHER = "Give a prompt in columns.prompt, or whole conversations as lists of turns with as_chat=true of the source."


def parse_answers(row: Row, source: SourceConfig, counts: Counter[str]) -> Answers | None:
    """Turn a row of preferences into answers to one prompt, or None if it is dropped.

    Counts:
        no_prompt, different_prompts, empty_side, equal_sides, tied_ranks: rows dropped; null_turns, other_roles,
        joined_turns: what was met in others.

    Raises:
        RowError: If the row does not hold them.
    """
    columns, margin = source.columns, 0.0
    if source.format is Format.unpaired:
        said, label = [row.get(columns.completion)], _label(row, columns.label)
        names = [columns.completion]
    else:
        found = _sides(row, columns, counts)
        if found is None:
            return None
        (said, names), label = found, None
        if columns.margin is not None and columns.margin in row:
            margin = row_margin(row[columns.margin], columns.margin)
    if not source.as_chat:
        texts = _texts(row, said, names, columns, counts)
        return Answers(texts, is_desirable=label, margin=margin) if texts else None
    conversations, num_asked = _conversations(row, said, names, columns, counts)
    return Answers(conversations, num_asked, label, margin) if conversations else None


def _sides(row: Row, columns: ColumnsConfig, counts: Counter[str]) -> tuple[list[Any], list[str]] | None:
    """Return what a row says as its chosen and its rejected answer, and the columns that say it."""
    column = columns.completions
    if column is None:
        return [row.get(columns.chosen), row.get(columns.rejected)], [columns.chosen, columns.rejected]
    ranked = list_cell(row, column, "two {rank, completion}")
    ranks = [one.get("rank") if isinstance(one, dict) else None for one in ranked]
    if len(ranked) != 2 or not all(map(_is_number, ranks)):
        raise RowError(f"hold two {{rank, completion}} in column '{column}'", short(ranked), MEND)
    if ranks[0] == ranks[1]:
        counts["tied_ranks"] += 1
        return None
    ordered = sorted(ranked, key=lambda one: one["rank"])
    return [one.get("completion") for one in ordered], [column, column]


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and value == value


def _label(row: Row, column: str) -> bool:
    value = row.get(column)
    told = LABELS.get(value.strip().lower()) if isinstance(value, str) else value
    if not isinstance(told, bool | int | float) or told not in (0, 1):
        fix = "Write true for an answer that is desirable and false for one that is not."
        raise RowError(f"hold true or false in column '{column}'", short(value), fix)
    return bool(told)


def _texts(
    row: Row, said: list[Any], names: list[str], columns: ColumnsConfig, counts: Counter[str]
) -> list[CompletionDocument]:
    """Return texts after a text; none where the row is dropped."""
    row = row | {name: unfolded(row.get(name)) for name in (columns.prompt, *names)}
    prompt = prompt_text(row, columns.prompt, columns.input)
    answers = [text_cell(row, name) for name in names]
    if columns.completions is not None:
        answers = [text_cell({"completion": value}, "completion") for value in said]
    if not prompt.strip() and all(map(is_human_text, answers)):
        split = [split_text(answer) for answer in answers]
        prompt, answers = split[0][0], [answer for _, answer in split]
        if any(asked != prompt for asked, _ in split):
            counts["different_prompts"] += 1
            return []
    elif not prompt.strip() and any(answer.strip() for answer in answers):
        raise RowError(f"hold a prompt in column '{columns.prompt}'", short(row.get(columns.prompt)), NEITHER)
    system = text_cell(row, columns.system) if columns.system else ""
    prompt = f"{system}\n\n{prompt}" if system else prompt
    if not all(answer.strip() for answer in answers):
        counts["empty_side"] += 1
        return []
    if len(answers) == 2 and answers[0] == answers[1]:
        counts["equal_sides"] += 1
        return []
    return [CompletionDocument(prompt, answer) for answer in answers]


def _conversations(
    row: Row, said: list[Any], names: list[str], columns: ColumnsConfig, counts: Counter[str]
) -> tuple[list[ChatDocument], int]:
    """Return conversations that begin with the same turns, and how many those are; none where the row is dropped."""
    asked, tools = _asked(row, columns, counts)
    is_human = not asked and all(map(is_human_text, said))
    if is_human:
        sides = [split_turns(text_cell({"text": text}, "text"), counts) for text in said]
    else:
        sides = [_answer(value, name, counts) for value, name in zip(said, names, strict=True)]
    if len(sides) == 2 and sides[0] == sides[1] and sides[0]:
        counts["equal_sides"] += 1
        return [], 0
    if not asked:
        asked = _before_the_last(sides[0]) if is_human else _shared_turns(sides)
    sides = [side[len(asked) :] if side[: len(asked)] == asked else side for side in sides]
    if reason := _unfit(asked, sides):
        counts[reason] += 1
        return [], 0
    documents = [chat_of([*asked, *side], row, columns) for side in sides]
    for document in documents:
        document.tools = document.tools or tools
    return documents, len(documents[0].messages) - len(sides[0])


def _asked(row: Row, columns: ColumnsConfig, counts: Counter[str]) -> tuple[list[Message], list[Any] | None]:
    """Return the turns of the prompt's own column, a text, turns or {messages, tools}, and its tools; none if empty."""
    value = unfolded(row.get(columns.prompt))
    if isinstance(value, dict | list) and columns.input and text_cell(row, columns.input):
        rule = f"hold text in column '{columns.prompt}' beside '{columns.input}'"
        raise RowError(rule, short(value), MEND)
    if isinstance(value, dict):
        if not isinstance(value.get("messages"), list):
            raise RowError(f"hold {{messages, tools}} in column '{columns.prompt}'", short(value), MEND)
        turns = read_turns(list_cell(value, "messages", "messages"), counts, ())
        return turns, read_tools(value, "tools") or None
    if isinstance(value, list):
        return read_turns(list_cell({columns.prompt: value}, columns.prompt, "messages"), counts, ()), None
    text = prompt_text(row, columns.prompt, columns.input)
    return [{"role": "user", "content": text}] if text.strip() else [], None


def _answer(value: Any, column: str, counts: Counter[str]) -> list[Message]:
    """Read an answer: a text, a turn, or a list of turns, which may begin with the prompt."""
    value = unfolded(value)
    if isinstance(value, str):
        text = text_cell({column: value}, column)
        return [{"role": "assistant", "content": text}] if text.strip() else []
    raw = [value] if isinstance(value, dict) else list_cell({column: value}, column, "messages")
    return read_turns(raw, counts, ())


def _shared_turns(sides: list[list[Message]]) -> list[Message]:
    """Return the prompt of conversations: the turns that both begin with, as far as an answer follows in both.

    Where there is one conversation beside an answer alone, it is what stands before its own answer.
    """
    whole = [side for side in sides if side and side[0]["role"] not in ANSWERING]
    if len(whole) < 2:
        return _before_the_last(whole[0]) if whole else []
    first, second = whole
    same = next((at for at, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), None)
    length = min(len(first), len(second)) if same is None else same
    while length and any(side[length : length + 1] and side[length]["role"] != "assistant" for side in whole):
        length -= 1
    return first[:length]


def _before_the_last(turns: list[Message]) -> list[Message]:
    """Return the turns before the last answer, which may be several turns with tools."""
    asking = [turn for turn, message in enumerate(turns) if message["role"] not in ANSWERING]
    return turns[: asking[-1] + 1] if asking else []


def _unfit(asked: list[Message], sides: list[list[Message]]) -> str:
    """Return why a row is dropped, as it is counted; empty where it is kept."""
    if not all(any(map(_says, side)) for side in sides):
        return "empty_side"
    if any(side[0]["role"] != "assistant" for side in sides):
        return "different_prompts"
    if any(turn["role"] not in ANSWERING for side in sides for turn in side):
        return "different_prompts"
    if not any(turn["role"] not in ANSWERING and turn["content"].strip() for turn in asked):
        return "no_prompt"
    return ""


def _says(turn: Message) -> bool:
    return bool(turn["role"] == "assistant" and (turn["content"].strip() or len(turn) > 2))
