"""Refuses rows without a column that must be there, and says what to set for the columns that are. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Collection, Sequence
from difflib import get_close_matches
from typing import Any

from trainer.config.data import ANSWERED, Format, SourceConfig
from trainer.data.rows.columns import LAYOUTS, Row, required_columns
from trainer.errors import DataError

ASIDE = {
    "id",
    "idx",
    "index",
    "uuid",
    "source",
    "url",
    "date",
    "time",
    "timestamp",
    "lang",
    "language",
    "hash",
}
ASIDE |= {
    "category",
    "topic",
    "label",
    "score",
    "split",
    "model",
    "num",
    "count",
    "length",
    "license",
    "author",
}
"""Words in the names of columns that are not proposed for what is learnt."""
NO_TEXT = re.compile(
    r"[+-]?[\d.,]+(e[+-]?\d+)?%?|true|false|[\da-f-]{16,}|\d{4}-\d\d-\d\d([ T][\d:.+Z-]*)?|[a-z]+://\S+|[a-z]+[-_]?\d+",
    re.IGNORECASE,
)
"""Numbers, ids, dates and addresses: values that nobody wants to have learnt by themselves."""
SAMPLE_ROWS = 20
"""Rows that are looked at to tell columns of text from others."""


def check_columns(
    name: str,
    source: SourceConfig,
    where: str,
    columns: Collection[str],
    wanted: dict[str, str],
    is_like_others: bool = True,
    sample: Callable[[], Sequence[Row]] = tuple,
) -> None:
    """Refuse a row or table without a column that it must have.

    Args:
        is_like_others: Its columns are those of the file, as of a table or the first row, and not only of one row.
        sample: Returns some rows, by which columns of text are told from those of ids and numbers.
    Raises:
        DataError: If one of `wanted` (config key: name) is not there.
    """
    absent = {key: column for key, column in wanted.items() if column not in columns}
    if absent:
        (key, column), *others = absent.items()
        fix = _hint(name, source, columns, absent, sample) if is_like_others else "Mend or remove that row."
        beside = "".join(f", and {other} is '{of_other}'" for other, of_other in others)
        raise DataError(
            f"`data.sources.{name}.columns.{key}` must name a column of {where}, but is '{column}' "
            f"instead{beside}; the columns are [{', '.join(map(_shown, columns))}]. {fix}".rstrip()
        )


def _shown(column: str) -> str:
    is_plain = column.isprintable() and column == column.strip()
    return column if is_plain else repr(column)


def _hint(
    name: str,
    source: SourceConfig,
    columns: Collection[str],
    absent: dict[str, str],
    sample: Callable[[], Sequence[Row]],
) -> str:
    """Return what to set for rows with these columns: a layout that they look like, or the columns one by one."""
    of_source = f"data.sources.{name}"
    for format_, layouts in LAYOUTS.items():
        for title, layout in layouts[:1] if format_ is Format.text else layouts:
            if format_ is source.format or not set(layout.values()) <= set(columns):
                continue
            shown = f"{of_source}.format={format_.value}"
            if format_ in ANSWERED:
                shown += f" {of_source}.as_chat=true"
            return f"Its rows look like {title}: set {shown}."
    near = {key: found for key, column in absent.items() if (found := near_column(column, columns))}
    if len(near) == len(absent):
        return f"Set {_words(of_source, {f'columns.{key}': found for key, found in near.items()})}, if that is it."
    if not absent.keys() & required_columns(source).keys():
        return ""
    is_one = source.format in (Format.text, Format.ids)
    rows = sample() if source.format is not Format.ids else ()
    read = text_columns(columns, rows, 1 if is_one else 2)
    if not read:
        return ""
    if len(read) == 1 or is_one:
        key = next(iter(required_columns(source)))
        return f"Say which it is: {_words(of_source, {f'columns.{key}': read[0] if len(read) == 1 else 'COLUMN'})}."
    words = {} if source.format is Format.completion else {"format": "completion", "as_chat": "true"}
    words |= {"columns.prompt": read[0], "columns.completion": read[-1]}
    return (
        f"Say which hold the prompt and the answer, such as {_words(of_source, words)}; data=prompt_completion is such "
        "a source."
    )


def text_columns(columns: Collection[str], rows: Sequence[Row], most: int) -> list[str]:
    """Return the columns that may hold what is learnt, in their order; by rows the `most` with the longest texts.

    Columns of ids, numbers, dates and addresses are left out, by their name, and by what rows hold.
    """
    read = [column for column in columns if not _is_aside(column)]
    if not rows:
        return read
    lengths = {column: _text_length([row.get(column) for row in rows]) for column in read}
    longest = sorted((column for column in read if lengths[column]), key=lambda column: -lengths[column])[
        :most
    ]
    return [column for column in read if column in longest]


def _text_length(values: Sequence[Any]) -> float:
    """Return how long the texts of a column are; 0 where it holds none, or only ids, numbers, dates and addresses."""
    said = [value.strip() for value in values if isinstance(value, str) and value.strip()]
    if all(NO_TEXT.fullmatch(value) for value in said):
        return 0.0
    return sum(map(len, said)) / len(said)


def near_column(wanted: str, columns: Collection[str]) -> str | None:
    """Return the column that is most like one that is not there; None where none is."""
    return next(iter(get_close_matches(wanted, columns, 1, cutoff=0.75)), None)


def _words(of_source: str, values: dict[str, str]) -> str:
    return " ".join(shlex.quote(f"{of_source}.{key}={value}") for key, value in values.items())


def _is_aside(column: str) -> bool:
    """Say whether a column is, by its name, no text that is learnt: what a person seldom means."""
    return bool(ASIDE & set(re.split(r"[^a-z]+", column.lower())))
