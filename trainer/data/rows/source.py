"""Reads the rows of a source in order, in batches, each row with the place it came from.

Files are read by our own readers: those of `datasets` turn strings that look like dates into timestamps, shift
the columns of uneven CSV rows, and do not say which line is broken.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

from trainer.config.data import ColumnsConfig, SourceConfig, TokenValue
from trainer.config.many import many
from trainer.data.formats.opened import NumberedRow, Opened, open_file, open_mapped
from trainer.data.rows.absent_column import SAMPLE_ROWS, check_columns, near_column
from trainer.data.rows.columns import (
    ColumnLayout,
    Row,
    is_weighty,
    optional_columns,
    recognise,
    refuse_unread,
    required_columns,
)
from trainer.data.rows.document import parse_row
from trainer.data.rows.files import Listing, kind_of
from trainer.data.rows.preferred import parse_answers
from trainer.data.rows.reading import Reading, join_names
from trainer.data.types import RowBatch, RowError, RowProblem, problems_said
from trainer.errors import DataError

T = TypeVar("T")

BATCH_ROWS = 1000
BATCH_CHARS = 1 << 20
LOOK_ROWS = 100
"""Rows that are read before anything is loaded."""


class SourceRows:
    """The rows of a source, whose columns are known from its first row or table.

    Raises:
        DataError: While reading, if a file cannot be read, or its columns are not as the source says.
    """

    def __init__(
        self, name: str, source: SourceConfig, opened: Iterator[Opened], values: Collection[TokenValue] = ()
    ) -> None:
        self._name = name
        self._asked = source
        self._values = values
        self._opened = _keyed(name, opened)
        self._first: list[Opened] = []
        for file in self._opened:
            self._first.append(file)
            if file.columns:
                break
        columns = self._first[-1].columns if self._first else []
        self._layout: ColumnLayout = recognise(name, source, columns, values)
        self.reading = Reading(lines=list(self._layout.lines))
        """What was noticed; whole when the last row was read."""
        self._num_rows = 0
        self._num_with: Counter[str] = Counter()
        self._ignored: set[str] = set()

    @property
    def source(self) -> SourceConfig:
        """The source with all its columns named, as its rows are parsed."""
        return self._layout.source

    def batches(self) -> Iterator[RowBatch]:
        """Read the rows of all files in batches."""
        num_left = self._asked.max_documents
        empty = []
        for file in chain(self._first, self._opened):
            if num_left == 0:
                break
            before = self._num_rows
            for batch in _batched(islice(self._rows(file), num_left), file.place, file.unit):
                num_left = None if num_left is None else num_left - len(batch.rows)
                yield batch
            self.reading.counts.update(file.notes())
            if self._num_rows == before:
                empty.append(file.label)
        if empty:
            self.reading.lines.append(f"files without a row: {join_names(empty)}")
        self._check_seen()

    def look(self, most: int = LOOK_ROWS) -> None:
        """Read the first rows, for what is wrong with them and with the columns that are named; then it is of no use.

        Raises:
            DataError: As `batches`; rows that are no documents; of a column that no row has only where all rows were
                read.
        """
        most = min(most, self._asked.max_documents or most + 1)
        kinds: dict[str, RowProblem] = {}
        counts: Counter[str] = Counter()
        for file in chain(self._first, self._opened):
            for number, row in islice(self._rows(file), most - self._num_rows):
                try:
                    self._parse(row)
                except RowError as error:
                    where = f"{file.place}, {file.unit} {number}"
                    kinds.setdefault(error.rule, RowProblem(error.rule, error.value, error.fix, where))
                    counts[error.rule] += 1
            if self._num_rows >= most:
                break
        self._refuse_rows(kinds, counts, most)
        if self._num_rows < most or most == self._asked.max_documents:
            self._check_seen()
            return
        for slot, column in self._named_columns().items():
            near = near_column(column, self.reading.unread)
            if near is not None and not self._num_with[column]:
                raise DataError(
                    f"`data.sources.{self._name}.columns.{slot}` must name a column that some row has, but is "
                    f"'{column}' instead, which none of the first {most} rows has. Set data.sources.{self._name}."
                    f"columns.{slot}={near}, if that is it."
                )

    def _parse(self, row: Row) -> None:
        """Parse a row for what is wrong with it; raises RowError."""
        if self.source.holds_preferences:
            parse_answers(row, self.source, Counter())
        else:
            parse_row(row, self.source, Counter(), self._values)

    def _refuse_rows(self, kinds: dict[str, RowProblem], counts: Counter[str], most: int) -> None:
        key = f"`data.sources.{self._name}`"
        if kinds:
            of = f"{'the first ' if self._num_rows >= most else ''}{many(self._num_rows, 'row')}"
            raise DataError(problems_said(key, [*kinds.values()], counts, of))
        if self._num_rows == 0:
            raise DataError(f"{key} must hold documents, but is empty. Check its files or drop it.")

    def _rows(self, file: Opened) -> Iterator[NumberedRow]:
        name, source, read = self._name, self.source, self._layout.read
        required = required_columns(source)
        passed = {*read, *source.columns.ignore}
        wanted = [column for column in file.columns if column in read]
        watched: list[str] = []
        if file.is_table and file.columns:
            wanted_all, sample = required | self._named_columns(), partial(first_rows, file)
            check_columns(name, source, file.label, file.columns, wanted_all, sample=sample)
            watched = [c for c in file.columns if c not in passed and is_weighty(source, c)]
            self.reading.unread |= set(file.columns) - passed
            self._ignored |= set(file.columns) & set(source.columns.ignore)
        for number, row in _keyed(name, file.read(wanted, watched)):
            if not file.is_table and any(column not in row for column in required.values()):
                where = f"{file.label} (row {number})"
                check_columns(
                    name, source, where, list(row), required, self._num_rows == 0, partial(list, [row])
                )
            if unread := row.keys() - passed:
                refuse_unread(name, self._layout, row, sorted(unread), f"{file.place}, {file.unit} {number},")
                self.reading.unread |= unread
            if source.columns.ignore:
                self._ignored |= row.keys() & set(source.columns.ignore)
            self._num_rows += 1
            kept = {column: row[column] for column in read if column in row}
            self._num_with.update(kept.keys())
            yield number, kept

    def _named_columns(self) -> dict[str, str]:
        """Return the optional columns that the configuration names itself, by key."""
        optional = optional_columns(self.source)
        usual = {"prompt": ColumnsConfig.prompt}  # of preferences, where rows may go without one
        return {
            key: column
            for key, column in optional.items()
            if key not in self._layout.taken and column != usual.get(key)
        }

    def _check_seen(self) -> None:
        key = f"data.sources.{self._name}.columns"
        if self._num_rows == 0:
            return
        for slot, column in self._named_columns().items():
            if not self._num_with[column]:
                raise DataError(
                    f"`{key}.{slot}` must name a column that some row has, but is '{column}' instead, which no "
                    "row has. Mend the name or leave it out."
                )
        optional = optional_columns(self.source)
        for slot in ("loss_mask", "labels", "weight", "margin"):
            column = optional.get(slot, "")
            if 0 < self._num_with[column] < self._num_rows:
                raise DataError(
                    f"`{key}.{slot}` must name a column that every row has or none, but is '{column}' instead, "
                    f"which {self._num_with[column]:,} of {self._num_rows:,} rows have. Mend the rows."
                )
        missing = sorted(set(self.source.columns.ignore) - self._ignored)
        if missing and self._asked.max_documents is None:
            raise DataError(
                f"`{key}.ignore` must name columns that some row has, but is [{', '.join(missing)}] instead, "
                "which no row has. Mend the name or leave it out."
            )
        taken = [f"{s}={c}" for s, c in self._layout.taken.items() if self._num_with[c]]
        if taken:
            self.reading.lines.append(f"columns read by their usual names: {', '.join(taken)}")
        if self.source.columns.ignore:
            ignored = join_names(sorted(self.source.columns.ignore))
            self.reading.lines.append(f"columns left unread as asked: {ignored}")


def first_rows(file: Opened) -> list[Row]:
    """Return some rows of a table with all their columns; none where they cannot be read."""
    with contextlib.suppress(DataError):
        return [row for _, row in islice(file.read(file.columns, []), SAMPLE_ROWS)]
    return []


def _keyed(name: str, items: Iterator[T]) -> Iterator[T]:
    """Put the key of the source before what readers say of its files, who do not know it."""
    try:
        yield from items
    except DataError as error:
        if str(error).startswith("`"):
            raise
        raise DataError(f"`data.sources.{name}`: {error}") from error


def read_files(
    name: str, source: SourceConfig, listing: Listing, values: Collection[TokenValue] = ()
) -> SourceRows:
    """Read the rows of files, file after file, or as an indices mapping has them.

    Args:
        values: Numbers of tokens that are read where there is a column of them.
    Raises:
        DataError: If the first of them cannot be read, or has not the columns that the source names.
    """
    if listing.order:
        mapped = [file for file in listing.files if isinstance(file, Path)]
        return SourceRows(name, source, iter([open_mapped(mapped, listing.order)]), values)
    opened = (open_file(source, file, kind_of(file)) for file in listing.files)
    return SourceRows(name, source, opened, values)


def _batched(rows: Iterable[NumberedRow], file: str, unit: str) -> Iterator[RowBatch]:
    batch, num_chars = RowBatch(file, unit, [], []), 0
    for number, row in rows:
        batch.numbers.append(number)
        batch.rows.append(row)
        num_chars += _num_chars(row)
        if len(batch.rows) == BATCH_ROWS or num_chars >= BATCH_CHARS:
            yield batch
            batch, num_chars = RowBatch(file, unit, [], []), 0
    if batch.rows:
        yield batch


def _num_chars(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_num_chars, value.values()))
    if isinstance(value, list):
        if value and isinstance(value[0], int):
            return 4 * len(value)
        return sum(map(_num_chars, value))
    return 1
