"""Reads the rows of a source in order, in batches, each row with the place it came from.

The only file that imports `datasets`, and only for the hub: local files are read here, because its readers turn
strings that look like dates into timestamps, shift the columns of uneven CSV rows, and do not say which line is broken.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.config.data import SourceConfig
from trainer.data.columns import (
    Layout,
    check_columns,
    is_weighty,
    optional_columns,
    recognise,
    refuse_unread,
    required_columns,
)
from trainer.data.files import file_kind
from trainer.data.formats.csv import CsvFile
from trainer.data.formats.json import read_json, read_json_lines
from trainer.data.formats.stream import BrokenFile
from trainer.data.formats.table import TableFile, check_type, plain_rows
from trainer.data.formats.txt import read_texts
from trainer.data.reading import Reading, join_names
from trainer.data.types import RowBatch
from trainer.errors import DataError

if TYPE_CHECKING:
    import datasets

Row = dict[str, Any]
NumberedRow = tuple[int, Row]

BATCH_ROWS = 1000
BATCH_CHARS = 1 << 20


@dataclass(slots=True)
class _Opened:
    """A file of rows: the columns of its first row, or of all if it is a table, and how to read it."""

    label: str
    """Its name in messages about all of it."""
    place: str
    """Its name in the places of rows."""
    unit: str
    columns: list[str]
    is_table: bool
    read: Callable[[list[str], list[str]], Iterator[NumberedRow]]
    """Takes the columns that are wanted, and those only watched; what is no table gives all."""
    notes: Callable[[], Counter[str]] = Counter
    """What was noticed, once its rows were read."""


class SourceRows:
    """The rows of a source, whose columns are known from its first row or table.

    Raises:
        DataError: While reading, if a file cannot be read, or its columns are not as the source says.
    """

    def __init__(self, name: str, source: SourceConfig, opened: Iterator[_Opened]) -> None:
        self._name = name
        self._asked = source
        self._opened = opened
        self._first: list[_Opened] = []
        for file in opened:
            self._first.append(file)
            if file.columns:
                break
        columns = self._first[-1].columns if self._first else []
        self._layout: Layout = recognise(name, source, columns)
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

    def _rows(self, file: _Opened) -> Iterator[NumberedRow]:
        name, source, read = self._name, self.source, self._layout.read
        required = required_columns(source)
        passed = {*read, *source.columns.ignore}
        wanted = [column for column in file.columns if column in read]
        watched: list[str] = []
        if file.is_table and file.columns:
            check_columns(name, source, file.label, file.columns, required | self._named_columns())
            watched = [c for c in file.columns if c not in passed and is_weighty(source, c)]
            self.reading.unread |= set(file.columns) - passed
            self._ignored |= set(file.columns) & set(source.columns.ignore)
        for number, row in file.read(wanted, watched):
            if not file.is_table and any(column not in row for column in required.values()):
                check_columns(name, source, f"{file.label} (row {number})", list(row), required)
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
        return {key: column for key, column in optional.items() if key not in self._layout.taken}

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
        for slot in ("loss_mask", "labels"):
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


def read_files(name: str, source: SourceConfig, files: list[Path]) -> SourceRows:
    """Read the rows of local files, file after file.

    Raises:
        DataError: If the first of them cannot be read, or has not the columns that the source names.
    """
    return SourceRows(name, source, (_open_file(source, file) for file in files))


def _open_file(source: SourceConfig, file: Path) -> _Opened:
    kind = file_kind(file)
    with _told(file):
        match kind:
            case "csv" | "tsv":
                csv_file = CsvFile(file, "," if kind == "csv" else "\t")
                return _Opened(
                    file.name,
                    str(file),
                    "row",
                    csv_file.columns,
                    True,
                    lambda wanted, watched: _guarded(file, csv_file.read()),
                    lambda: csv_file.notes,
                )
            case "parquet" | "arrow":
                table = TableFile(file, kind)
                return _Opened(
                    file.name,
                    str(file),
                    "row",
                    table.columns,
                    True,
                    lambda wanted, watched: _guarded(file, table.read(wanted, watched)),
                    lambda: table.notes,
                )
            case _:
                return _open_rows(source, file, str(kind))


def _open_rows(source: SourceConfig, file: Path, kind: str) -> _Opened:
    match kind:
        case "jsonl":
            rows = read_json_lines(file)
        case "json":
            rows = read_json(file)
        case _:
            texts = read_texts(file, source.txt_documents)
            rows = ((number, {source.columns.text: text}) for number, text in texts)
    rows = _guarded(file, rows)
    first = list(islice(rows, 1))
    is_lines = kind == "jsonl" or (kind == "txt" and source.txt_documents == "line")
    return _Opened(
        file.name,
        str(file),
        "line" if is_lines else "row",
        list(first[0][1]) if first else [],
        False,
        lambda wanted, watched: chain(first, rows),
    )


def _guarded(file: Path, rows: Iterator[NumberedRow]) -> Iterator[NumberedRow]:
    with _told(file):
        yield from rows


@contextmanager
def _told(file: Path) -> Iterator[None]:
    """Turn what goes wrong with the bytes of a file into a sentence."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file} must be UTF-8, but has the byte {error.object[error.start]:#04x} at offset "
            f"{error.start} of a block instead. Convert it, for example with iconv."
        ) from error
    except (EOFError, OSError, zlib.error, BrokenFile) as error:
        _raise_if_disk(error)
        raise DataError(f"{file} cannot be read: {_first_line(error)}.") from error


def open_dataset(name: str, source: SourceConfig, cache: Path) -> datasets.Dataset:
    """Download or find a Hugging Face dataset, whole.

    Raises:
        DataError: If it cannot be had, or its values are guesses.
    """
    import datasets

    datasets.disable_progress_bars()
    try:
        dataset = datasets.load_dataset(
            source.dataset,
            source.subset,
            split=source.split,
            revision=source.revision,
            cache_dir=str(cache),
        )
    except Exception as error:  # the hub, its scripts and readers raise whatever they like
        _raise_if_disk(error)
        raise DataError(
            f"`data.sources.{name}.dataset` must name a dataset that can be read, but "
            f"'{source.dataset}' (subset {source.subset}, split {source.split}, revision "
            f"{source.revision}) cannot be: {_first_line(error)}. Check the name, or download it and "
            f"set data.sources.{name}.path."
        ) from error
    if dataset.info.builder_name == "csv":
        raise DataError(
            f"`data.sources.{name}.dataset` must hold JSON, Parquet or text, but '{source.dataset}' holds CSV "
            "instead, whose values the library `datasets` guesses (NA, 007, dates). Download it and set "
            f"data.sources.{name}.path."
        )
    return dataset


def read_dataset(name: str, source: SourceConfig, dataset: datasets.Dataset) -> SourceRows:
    """Read the rows of a Hugging Face dataset in its order."""
    if source.max_documents is not None:
        dataset = dataset.select(range(min(source.max_documents, len(dataset))))
    label = str(source.dataset)
    notes: Counter[str] = Counter()

    def read(wanted: list[str], watched: list[str]) -> Iterator[NumberedRow]:
        fix = (
            "The library `datasets` may have taken text for it: download the dataset and set "
            f"data.sources.{name}.path."
        )
        for column in wanted:
            check_type(column, dataset.data.schema.field(column).type, label, fix)
        chosen = dataset.select_columns([*wanted, *watched]).with_format("arrow")
        tables = chosen.iter(batch_size=BATCH_ROWS)
        rows = (row for table in tables for row in plain_rows(table, wanted, watched, label, notes))
        yield from enumerate(rows, 1)

    opened = _Opened(label, label, "row", list(dataset.column_names), True, read, lambda: notes)
    return SourceRows(name, source, iter([opened]))


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


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")


def _raise_if_disk(error: BaseException) -> None:
    # A full disk is told of by whoever owns the cache folder, not as a bad file.
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and "No space left" in str(cause):
            raise OSError(28, "No space left on device") from error
        cause = cause.__cause__
