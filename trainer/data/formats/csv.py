"""Reads CSV and TSV as text: every row has the fields that the header names, or is refused with its line."""

from __future__ import annotations

import csv
import sys
from collections import Counter
from collections.abc import Iterator
from typing import IO, Any

from trainer.data.formats.stream import DataFile, open_text
from trainer.errors import DataError

Row = dict[str, Any]

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
MEND = (
    "Mend the line: a field that holds the delimiter, a quote or a line break stands in quotes, "
    "with its own quotes doubled."
)


class CsvFile:
    """A CSV file whose header was read.

    Args:
        delimiter: What its kind says; another one that the header plainly uses instead is taken and told.
    """

    def __init__(self, file: DataFile, delimiter: str) -> None:
        csv.field_size_limit(sys.maxsize)
        self.file = file
        self.notes: Counter[str] = Counter()
        """What was noticed, and how often; complete when the rows were read."""
        self._skip = 0
        self._delimiter = delimiter
        self.columns = self._read_header()

    def _read_header(self) -> list[str]:
        with open_text(self.file, newline="") as stream:
            first = next((line for line in stream if line.strip()), "")
        named = first.rstrip("\r\n")
        if named.lower().startswith("sep=") and named[4:] in DELIMITERS:
            # Excel's way to say it.
            self._delimiter, self._skip = named[4:], 1
        elif self._delimiter not in first:
            found = [d for d in DELIMITERS if d in first]
            if len(found) == 1:
                self._delimiter = found[0]
                self.notes[f"read as separated by {DELIMITERS[found[0]]}"] += 1
        with open_text(self.file, newline="") as stream:
            header = next((fields for _, fields in self._records(stream)), [])
        return self._named(header)

    def _named(self, header: list[str]) -> list[str]:
        columns = [name or f"(column {number} without a name)" for number, name in enumerate(header, 1)]
        twice = [name for name, count in Counter(columns).items() if count > 1]
        if twice:
            raise DataError(
                f"{self.file} must have a header with different names, but has '{twice[0]}' "
                f"{columns.count(twice[0])} times instead. Rename or remove a column."
            )
        return columns

    def read(self) -> Iterator[tuple[int, Row]]:
        """Read the rows, each with its number.

        Raises:
            DataError: If a row has more or fewer fields than the header, or its quotes do not close.
        """
        self.notes = Counter({note: 1 for note in self.notes})
        with open_text(self.file, newline="") as stream:
            records = self._records(stream, counts=self.notes)
            next(records, None)
            for number, (line, fields) in enumerate(records, 1):
                if len(fields) != len(self.columns):
                    raise DataError(
                        f"{self.file}, line {line} must have the {_fields(len(self.columns))} of the header, "
                        f"but has {len(fields)} instead (separated by {self._delimiter!r}). {MEND}"
                    )
                yield number, dict(zip(self.columns, fields, strict=True))

    def _records(
        self, stream: IO[str], counts: Counter[str] | None = None
    ) -> Iterator[tuple[int, list[str]]]:
        counts = Counter() if counts is None else counts
        for _ in range(self._skip):
            next((line for line in stream if line.strip()), "")
        reader = csv.reader(self._lines(stream), delimiter=self._delimiter, strict=True)
        while True:
            line = reader.line_num + 1
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise DataError(
                    f"{self.file}, line {line} must be valid CSV, but is not: {error}. {MEND}"
                ) from error
            if not fields or (len(fields) == 1 and not fields[0].strip()):
                counts["blank line passed over"] += 1
                continue
            counts["row that spans lines, in quotes"] += reader.line_num > line
            yield line + self._skip, fields

    def _lines(self, stream: IO[str]) -> Iterator[str]:
        for line in stream:
            if "\0" in line:
                raise DataError(
                    f"{self.file} must be text, but holds a NUL byte instead. Is it UTF-16? Convert it."
                )
            yield line


def _fields(count: int) -> str:
    return "1 field" if count == 1 else f"{count} fields"
