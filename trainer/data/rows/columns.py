"""Decides which columns of a source are read, and refuses to leave out one that changes what is learnt. Pure.

A row layout in common use (ShareGPT, Alpaca, TRL, ...) is taken by its column names where the configuration
names no column that is there; everything taken so is told.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, assert_never

from trainer.config.data import ANSWERED, Format, SourceConfig, TokenValue
from trainer.errors import DataError

Row = dict[str, Any]


def _pair(prompt: str, chosen: str, rejected: str) -> dict[str, str]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


LAYOUTS: dict[Format, tuple[tuple[str, dict[str, str]], ...]] = {
    Format.text: (("text", {"text": "text"}), ("text", {"text": "content"})),
    Format.chat: (
        ("OpenAI messages", {"messages": "messages"}),
        ("ShareGPT", {"messages": "conversations"}),
        ("ShareGPT", {"messages": "conversation"}),
    ),
    Format.completion: (
        ("prompt and completion", {"prompt": "prompt", "completion": "completion"}),
        ("Alpaca", {"prompt": "instruction", "completion": "output"}),
        ("instruction and response", {"prompt": "instruction", "completion": "response"}),
        ("prompt and response", {"prompt": "prompt", "completion": "response"}),
        ("query and response", {"prompt": "query", "completion": "response"}),
        ("question and answer", {"prompt": "question", "completion": "answer"}),
        ("question and response", {"prompt": "question", "completion": "response"}),
        ("input and output", {"prompt": "input", "completion": "output"}),
    ),
    Format.ids: (("token ids", {"input_ids": "input_ids"}),),
    Format.preference: (
        ("prompt, chosen and rejected", {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}),
        ("OpenAI preferences", _pair("input", "preferred_output", "non_preferred_output")),
        ("ShareGPT preferences", _pair("conversations", "chosen", "rejected")),
        ("messages, chosen and rejected", _pair("messages", "chosen", "rejected")),
        ("conversation, chosen and rejected", _pair("conversation", "chosen", "rejected")),
        ("instruction, chosen and rejected", _pair("instruction", "chosen", "rejected")),
        ("question, chosen and rejected", _pair("question", "chosen", "rejected")),
        ("Argilla preferences", _pair("instruction", "chosen_response", "rejected_response")),
        ("ms-swift preferences", {"chosen": "messages", "rejected": "rejected_response"}),
        ("ms-swift preferences", {"chosen": "messages", "rejected": "rejected_messages"}),
        ("NeMo-RL preferences", {"prompt": "context", "completions": "completions"}),
        ("chosen and rejected conversations", {"chosen": "chosen", "rejected": "rejected"}),
    ),
    Format.unpaired: (
        ("prompt, completion and label", {"prompt": "prompt", "completion": "completion", "label": "label"}),
        ("Alpaca with kto_tag", {"prompt": "instruction", "completion": "output", "label": "kto_tag"}),
        ("ShareGPT with kto_tag", {"completion": "conversations", "label": "kto_tag"}),
        ("messages with kto_tag", {"completion": "messages", "label": "kto_tag"}),
        ("messages and label", {"completion": "messages", "label": "label"}),
        ("completion and label", {"completion": "completion", "label": "label"}),
    ),
}
"""Row layouts of each format: what people call it, and which column is which; the first is the default."""

OPTIONAL: dict[str, tuple[str, ...]] = {
    "tools": ("tools",),
    "system": ("system", "system_prompt"),
    "input": ("input", "context"),
    "loss_mask": ("loss_mask", "completion_mask", "assistant_masks"),
    "labels": ("labels",),
    "attention_mask": ("attention_mask",),
    "weight": ("weight", "sample_weight", "loss_weight"),
    "margin": ("margin",),
}
"""Names by which an optional column is taken when the configuration leaves it null."""

MASKS = {"loss_mask", "completion_mask", "assistant_masks", "assistant_mask", "train"}
MASKS |= {"weight", "weights", "loss", "loss_weight", "sample_weight"}
PROMPTS = {"system", "system_prompt", "tools", "functions", "context", "history", "documents"}
PROMPTS |= {"reasoning", "reasoning_content", "thinking"}
PROMPTS |= {"image", "images", "video", "videos", "audio", "audios"}
ANSWERS = {"chosen", "rejected", "rejected_response", "preferred_output", "non_preferred_output", "kto_tag"}
TURNS = {"messages", "conversations", "conversation"}
PAIRS = {"prompt", "instruction", "input", "query", "question"}
PAIRS |= {"completion", "output", "response", "answer"}
WEIGHTY: dict[Format, set[str]] = {
    Format.text: MASKS,
    Format.chat: MASKS | PROMPTS | ANSWERS | TURNS | PAIRS | {"labels"},
    Format.completion: MASKS | PROMPTS | ANSWERS | TURNS | PAIRS | {"labels"},
    Format.preference: MASKS | PROMPTS | ANSWERS | TURNS | PAIRS | {"label", "labels", "margin"},
    Format.unpaired: MASKS | PROMPTS | ANSWERS | TURNS | PAIRS | {"label", "labels"},
    Format.ids: MASKS | {"labels", "attention_mask", "position_ids", "seq_lengths", "images", "pixel_values"},
}
"""Columns that change what is learnt: not left unread without a word of the user's."""
LONG_NAME = 8
"""Letters of a name from which on one that is a letter off is taken for it."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    name: (1, True, "1", "1.0", "true", "True")
    for name in ("train", "loss", "weight", "weights", "loss_weight", "sample_weight")
}
"""Values of such a column that say nothing."""


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
        case Format.preference if columns.completions is not None:
            return {"completions": columns.completions}
        case Format.preference:
            return {"chosen": columns.chosen, "rejected": columns.rejected}
        case Format.unpaired:
            return {"completion": columns.completion, "label": columns.label}
        case _:
            assert_never(source.format)


def optional_columns(source: SourceConfig) -> dict[str, str]:
    """Map the config keys of the columns that a row may have to their names."""
    columns = source.columns
    wanted: dict[str, str | None] = {"weight": columns.weight}
    if source.holds_chats:
        wanted["tools"] = columns.tools
    if source.format in (Format.chat, *ANSWERED):
        wanted["system"] = columns.system
    if source.holds_preferences and columns.prompt not in required_columns(source).values():
        wanted["prompt"] = columns.prompt
    if source.format is Format.preference:
        wanted["margin"] = columns.margin
    if source.format in ANSWERED:
        wanted["input"] = columns.input
    if source.format is Format.ids:
        wanted |= {key: getattr(columns, key) for key in ("loss_mask", "labels", "attention_mask")}
    return {key: column for key, column in wanted.items() if column is not None}


@dataclass(frozen=True, slots=True)
class ColumnLayout:
    """A source with all its columns named, and which of them it did not name itself."""

    source: SourceConfig
    taken: dict[str, str]
    """Optional columns by config key that are taken by their name, wherever a row has them."""
    lines: list[str]
    """What was recognised, for a person."""
    values: Collection[TokenValue]
    """Numbers of tokens that are read."""

    @property
    def read(self) -> list[str]:
        """The columns that are read, where they are there."""
        return list(
            dict.fromkeys({**required_columns(self.source), **optional_columns(self.source)}.values())
        )


def recognise(
    name: str, source: SourceConfig, columns: Collection[str], values: Collection[TokenValue] = ()
) -> ColumnLayout:
    """Name the columns of a source by those of its first row or table.

    Args:
        values: Numbers of tokens that are read where there is a column of them.
    Raises:
        DataError: If more than one column could be the loss mask.
    """
    lines = []
    chosen: dict[str, str] = {}
    layouts = LAYOUTS[source.format]
    usual = layouts[0][1]
    is_usual = all(getattr(source.columns, key) == column for key, column in usual.items())
    if (
        is_usual
        and required_columns(source).items() <= usual.items()
        and not set(usual.values()) <= set(columns)
    ):
        for title, layout in layouts:
            if set(layout.values()) <= set(columns):
                chosen = dict(layout)
                shown = ", ".join(f"{key}={column}" for key, column in layout.items())
                lines.append(f"rows look like {title}: read with columns {{{shown}}}")
                break
    named = _with_columns(source, chosen)
    taken = _optional(name, named, columns, values)
    return ColumnLayout(_with_columns(named, taken), taken, lines, values)


def _with_columns(source: SourceConfig, names: dict[str, Any]) -> SourceConfig:
    return replace(source, columns=replace(source.columns, **names))


def _possible(source: SourceConfig, values: Collection[TokenValue]) -> list[str]:
    """Return the config keys of the optional columns that a source may name."""
    keys = optional_columns(_with_columns(source, {key: key for key in OPTIONAL}))
    unread = {value.value for value in (TokenValue.weight, TokenValue.margin) if value not in values}
    return [key for key in keys if key not in unread]


def _optional(
    name: str, source: SourceConfig, columns: Collection[str], values: Collection[TokenValue]
) -> dict[str, str]:
    """Return the optional columns to take by name; those that later rows may bring are among them."""
    used = set(required_columns(source).values()) | set(optional_columns(source).values())
    taken = {}
    for key in _possible(source, values):
        if getattr(source.columns, key) is not None:
            continue
        if key == "input" and source.columns.prompt != "instruction":
            continue
        names = [n for n in OPTIONAL[key] if n not in used and n not in source.columns.ignore]
        there = [n for n in names if n in columns]
        if len(there) > 1:
            raise DataError(
                f"`data.sources.{name}.columns.{key}` must say which of the columns [{', '.join(there)}] it is, "
                f"but is null instead. Set it, and data.sources.{name}.columns.ignore=[...] for the other."
            )
        if names:
            taken[key] = (there or names)[0]
    return taken


def refuse_unread(name: str, layout: ColumnLayout, row: Row, names: Iterable[str], where: str) -> None:
    """Refuse to leave columns of a row unread that change what is learnt.

    Raises:
        DataError: If one of `names` is such a column, and the row holds something in it.
    """
    lost = [
        column for column in names if is_weighty(layout.source, column) and _says(row, column, layout.read)
    ]
    if not lost:
        return
    key = f"data.sources.{name}.columns"
    maps = [f"{key}.{slot}={column}" for column in lost for slot in _slots(layout, column)]
    fix = f"Map it ({' '.join(maps)}), or" if maps else "To"
    counts = " To make it count: objective=weighted." if {*lost} <= {*OPTIONAL["weight"]} else ""
    counts = " To make it count: objective=reward." if {*lost} <= {*OPTIONAL["margin"]} else counts
    raise DataError(
        f"`{key}` must say what becomes of the column{'s' * (len(lost) > 1)} [{', '.join(lost)}], which {where} "
        f"fills, but does not instead. {fix} leave it unread: {key}.ignore=[{','.join(lost)}].{counts}"
    )


def is_weighty(source: SourceConfig, column: str) -> bool:
    """Say whether a column that is not read would change what is learnt, by its name or one that is meant to be it.

    Marks that no one sees, signs and capitals do not count; of a long name, neither does one letter (`los_mask`).
    """
    return any(_is_meant(column, known) for known in WEIGHTY[source.format])


def _is_meant(column: str, known: str) -> bool:
    name, known = _plain_name(column), _plain_name(known)
    return name == known or (len(known) >= LONG_NAME and _is_one_edit(name, known))


def _plain_name(column: str) -> str:
    return "".join(sign for sign in unicodedata.normalize("NFKC", column).casefold() if sign.isalnum())


def _is_one_edit(one: str, other: str) -> bool:
    """Say whether one letter more, less or another makes one word of the other, or two that changed places."""
    if len(one) > len(other):
        one, other = other, one
    same = next((i for i, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), len(one))
    if len(one) == len(other):
        swapped = one[:same] + one[same : same + 2][::-1] + one[same + 2 :]
        return one[same + 1 :] == other[same + 1 :] or swapped == other
    return one[same:] == other[same + 1 :]


def _slots(layout: ColumnLayout, column: str) -> Iterator[str]:
    names = {**OPTIONAL, "tools": ("tools", "functions")}
    for key in _possible(layout.source, layout.values):
        if any(_is_meant(column, known) for known in names.get(key, ())):
            yield key


def _says(row: Row, column: str, read: Collection[str]) -> bool:
    value = row.get(column)
    if value is None or value in ("", [], {}) or value in NEUTRAL.get(column.lower(), ()):
        return False
    if isinstance(value, list) and all(item is None or item in ("", [], {}) for item in value):
        return False
    # A prompt that stands in the conversation too is no loss.
    if not isinstance(value, str):
        return True
    said = value.strip()
    return bool(said) and all(said != text.strip() for name in read for text in _texts(row.get(name)))


def _texts(value: Any) -> Iterator[str]:
    """Yield a text, or the contents of turns."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for turn in value:
            if isinstance(turn, dict):
                yield from (turn[key] for key in ("content", "value") if isinstance(turn.get(key), str))
