"""Tells what the rows of files hold, for a person who has not said it yet: format, columns and a sample that parses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from trainer.config.data import ColumnsConfig, Format, SourceConfig
from trainer.data.formats.opened import open_file
from trainer.data.rows.columns import LAYOUTS
from trainer.data.rows.document import parse_row
from trainer.data.rows.files import Listing, kind_of, list_files
from trainer.data.rows.source import read_files
from trainer.data.types import RowError
from trainer.errors import DataError

SAMPLE_ROWS = 200
ORDER = (Format.chat, Format.completion, Format.ids, Format.text)
"""Formats as they are tried: rows of chats may have a column `text` beside the conversation."""


@dataclass(frozen=True, slots=True)
class Guess:
    """A source as its files look."""

    source: SourceConfig
    title: str
    """What people call the layout."""
    named: dict[str, str]
    """Columns that are not those of the default names, by key."""
    num_files: int
    num_rows: int
    """Rows of the sample, which were parsed."""
    lines: list[str]
    """What was noticed."""


def guess_layout(name: str, path: str, can_chat: bool, ignore: Sequence[str]) -> Guess:
    """Look at the first rows of files and return a source that reads them.

    Args:
        can_chat: Pairs may be rendered as a chat.
        ignore: Columns to leave unread.
    Raises:
        DataError: No file is there, its rows are of no layout that is known, or one of the sample cannot be read.
    """
    asked = SourceConfig(path=path)
    listing = list_files(name, asked)
    columns: list[str] = []
    for file in listing.files:
        columns = open_file(asked, file, kind_of(file)).columns
        if columns:
            break
    format_, title, layout = _known(columns, path)
    named = {key: column for key, column in layout.items() if getattr(ColumnsConfig(), key) != column}
    source = replace(
        asked,
        format=format_,
        as_chat=can_chat and format_ is Format.completion,
        columns=ColumnsConfig(**named, ignore=list(ignore)),
    )
    num_rows, lines = _parsed_sample(name, source, listing)
    return Guess(source, title, named, len(listing.files), num_rows, [*listing.lines, *lines])


def _known(columns: list[str], path: str) -> tuple[Format, str, dict[str, str]]:
    for format_ in ORDER:
        for title, layout in LAYOUTS[format_]:
            if set(layout.values()) <= set(columns):
                return format_, title, layout
    titles = ", ".join(dict.fromkeys(title for format_ in ORDER for title, _ in LAYOUTS[format_]))
    shown = f"the columns [{', '.join(columns)}]" if columns else "no row"
    raise DataError(
        f"`data` must hold rows of a known layout ({titles}), but '{path}' has {shown} instead. Rename columns, or "
        "write a source of your own: palimpsest explain data.sources.NAME.columns."
    )


def _parsed_sample(name: str, source: SourceConfig, listing: Listing) -> tuple[int, list[str]]:
    """Read and parse the first rows; return how many there were and what was noticed."""
    rows = read_files(name, replace(source, max_documents=SAMPLE_ROWS), listing)
    counts: Counter[str] = Counter()
    num_rows = 0
    for batch in rows.batches():
        for number, row in zip(batch.numbers, batch.rows, strict=True):
            num_rows += 1
            try:
                parse_row(row, rows.source, counts)
            except RowError as error:
                where = f"{batch.file}, {batch.unit} {number},"
                raise DataError(
                    f"`data` must {error.rule}, but {where} is {error.value} instead. {error.fix}"
                ) from error
    told = [
        f"{count} of the first {num_rows} rows: {what.replace('_', ' ')}"
        for what, count in counts.items()
        if count
    ]
    return num_rows, [*rows.reading.lines, *told]
