"""The rows that a data command reads: of any kind of file that `prepare` reads, with all their columns and names."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from trainer.config.data import SourceConfig
from trainer.data.formats.opened import open_file
from trainer.data.rows.files import hash_files, kind_of, list_files
from trainer.errors import DataError

_NAME = "rows"
"""What the readers of sources are told; no person sees it."""


@dataclass(frozen=True, slots=True)
class GivenRow:
    """A row, what names it and where it stands."""

    id: str
    where: str
    values: dict[str, Any]

    def text(self, key: str, column: str) -> str:
        """Return the text of a column: as it is, a number as Python writes it, a list of texts as paragraphs.

        Raises:
            DataError: The row has no such column, or something else in it; names the key.
        """
        value = self.value(key, column)
        if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
            return "\n\n".join(one.strip() for one in value)
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            kind = "null" if value is None else f"a {type(value).__name__}"
            raise DataError(
                f"`{key}` must name a column of texts, but '{column}' of {self.where} is {kind} instead. Name another "
                "column, or mend that row."
            )
        return str(value).strip()

    def value(self, key: str, column: str) -> Any:
        """Return the value of a column; raises DataError where the row has none."""
        if column not in self.values:
            raise DataError(
                f"`{key}` must name a column that every row has, but '{column}' is not in {self.where}, which has "
                f"{', '.join(self.values) or 'none'}. Set {key}."
            )
        return self.values[column]


@dataclass(frozen=True, slots=True)
class GivenRows:
    """All rows of the files of a key, and the digest of the files."""

    rows: list[GivenRow]
    digest: str

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[GivenRow]:
        return iter(self.rows)


def read_given(key: str, path: str, id_column: str | None = None, most: int | None = None) -> GivenRows:
    """Read the rows of files.

    Args:
        key: Of the configuration, for sentences.
        most: Rows at most.
    Raises:
        DataError: The files cannot be read, hold no row, or hold two rows of one name.
    """
    source = SourceConfig(path=path, txt_documents="line")
    rows: list[GivenRow] = []
    with _of_key(key):
        listing = list_files(_NAME, source)
        origin = hash_files(listing)
        for file in listing.files:
            opened = open_file(source, file, kind_of(file))
            for number, values in opened.read(opened.columns, []):
                if most is not None and len(rows) == most:
                    break
                where = f"{opened.place}, {opened.unit} {number}"
                row = GivenRow(f"{PurePath(str(file)).name}:{number}", where, dict(values))
                if id_column is not None:
                    row = GivenRow(row.text("synthetic.id_column", id_column), where, row.values)
                rows.append(row)
    if not rows:
        raise DataError(f"`{key}` must hold rows, but {path} is empty. Give another file.")
    seen: dict[str, str] = {}
    for row in rows:
        if row.id in seen:
            raise DataError(
                f"`synthetic.id_column` must name each row once, but {row.id!r} is {seen[row.id]} and {row.where}. "
                "Leave it out, or mend the rows."
            )
        seen[row.id] = row.where
    digest = hashlib.sha256(json.dumps([origin, id_column, most]).encode()).hexdigest()
    return GivenRows(rows, digest)


@contextlib.contextmanager
def _of_key(key: str) -> Iterator[None]:
    """Let sentences about files speak of this key."""
    try:
        yield
    except DataError as error:
        said = str(error).replace(f"data.sources.{_NAME}.path", key).replace(f"data.sources.{_NAME}", key)
        raise DataError(said if said.startswith("`") else f"`{key}`: {said}") from error
