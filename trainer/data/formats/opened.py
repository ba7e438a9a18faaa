"""Opens a file of rows of any format: its columns, how its rows are read, and a sentence for broken bytes."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from trainer.config.data import SourceConfig
from trainer.data.formats.csv import CsvFile
from trainer.data.formats.fault import first_line, raise_if_disk
from trainer.data.formats.json import read_json, read_json_lines
from trainer.data.formats.mapped import MappedTables
from trainer.data.formats.megatron import MegatronFile
from trainer.data.formats.stream import BrokenFile, DataFile, undecodable_line
from trainer.data.formats.table import TableFile
from trainer.data.formats.txt import read_texts
from trainer.errors import DataError

Row = dict[str, Any]
NumberedRow = tuple[int, Row]


AS_ONE = "txt file read as one document (data.sources.NAME.txt_documents: line or paragraph splits it)"


@dataclass(slots=True)
class Opened:
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


def open_file(source: SourceConfig, file: DataFile, kind: str) -> Opened:
    """Open a file of a kind.

    Raises:
        DataError: If it cannot be read; also later, while its rows are read.
    """
    with _told(file):
        match kind:
            case "csv" | "tsv":
                csv_file = CsvFile(file, "," if kind == "csv" else "\t")
                return Opened(
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
                return Opened(
                    file.name,
                    str(file),
                    "row",
                    table.columns,
                    True,
                    lambda wanted, watched: _guarded(file, table.read(wanted, watched)),
                    lambda: table.notes,
                )
            case "megatron":
                assert isinstance(file, Path), "behind an address it is refused"
                packed = MegatronFile(file)
                return Opened(
                    file.name,
                    str(file),
                    "document",
                    list(packed.columns),
                    True,
                    lambda wanted, watched: _guarded(file, packed.read()),
                    lambda: packed.notes,
                )
            case _:
                return _open_rows(source, file, kind)


def open_mapped(files: Sequence[Path], order: Sequence[Path]) -> Opened:
    """Open Arrow files whose rows are read by an indices mapping.

    Raises:
        DataError: If they cannot be read; also later, while their rows are read.
    """
    tables = MappedTables(files, order)
    folder = tables.folder
    return Opened(
        folder.name,
        str(folder),
        "row",
        tables.columns,
        True,
        lambda wanted, watched: _guarded(folder, tables.read(wanted, watched)),
        lambda: tables.notes,
    )


def _open_rows(source: SourceConfig, file: DataFile, kind: str) -> Opened:
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
    return Opened(
        file.name,
        str(file),
        "line" if is_lines else "row",
        list(first[0][1]) if first else [],
        False,
        lambda wanted, watched: chain(first, rows),
        lambda: Counter([AS_ONE] if kind == "txt" and source.txt_documents == "file" else []),
    )


def _guarded(file: DataFile, rows: Iterator[NumberedRow]) -> Iterator[NumberedRow]:
    with _told(file):
        yield from rows


@contextmanager
def _told(file: DataFile) -> Iterator[None]:
    """Turn what goes wrong with the bytes of a file into a sentence."""
    try:
        yield
    except UnicodeDecodeError as error:
        line = undecodable_line(file)
        where = str(file) if line is None else f"{file}, line {line},"
        raise DataError(
            f"{where} must be UTF-8, but has the byte {error.object[error.start]:#04x} instead. Convert the file, for "
            "example with iconv, or mend the line."
        ) from error
    except (EOFError, OSError, zlib.error, BrokenFile) as error:
        raise_if_disk(error)
        raise DataError(f"{file} cannot be read: {first_line(error)}.") from error
