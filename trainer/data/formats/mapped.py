"""Reads Arrow files in the order of an indices mapping, as early versions of `datasets` saved a shuffle or a filter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from trainer.data.formats.fault import first_line
from trainer.data.formats.table import BATCH_ROWS, CAST, check_type, open_arrow, plain_rows
from trainer.data.types import Int64s
from trainer.errors import DataError

Row = dict[str, Any]


class MappedTables:
    """The rows of Arrow files that an indices mapping names, in its order.

    Raises:
        DataError: If a file cannot be read, they have different columns, or the mapping names rows that are not there.
    """

    def __init__(self, files: Sequence[Path], order: Sequence[Path]) -> None:
        self.folder = files[0].parent
        self.notes: Counter[str] = Counter()
        """As of a table."""
        self._batches = [batch for file in files for batch in _batches(file)]
        schemas = [batch.schema for batch in self._batches]
        if any(schema.names != schemas[0].names for schema in schemas):
            raise DataError(
                f"{self.folder} must hold files with the same columns, but does not. Save it anew."
            )
        self._ends = np.cumsum([batch.num_rows for batch in self._batches], dtype=np.int64)
        self._order = _indices(order)
        num_rows = int(self._ends[-1]) if len(self._ends) else 0
        if len(self._order) and not 0 <= self._order.min() <= self._order.max() < num_rows:
            raise DataError(
                f"{order[0]} must name rows below {num_rows:,}, the rows of its folder, but names "
                f"{int(self._order.max()):,} instead. Save the dataset anew."
            )
        self.columns: list[str] = list(schemas[0].names) if schemas else []

    def read(self, wanted: Sequence[str], watched: Sequence[str] = ()) -> Iterator[tuple[int, Row]]:
        """Read some columns, each row with its number in the mapping; those watched may be of any type."""
        for column in wanted if self._batches else ():
            check_type(column, self._batches[0].schema.field(column).type, str(self.folder), CAST)
        for start in range(0, len(self._order), BATCH_ROWS):
            asked = self._order[start : start + BATCH_ROWS]
            rows = self._take(asked, wanted, watched)
            yield from ((start + place + 1, rows[place]) for place in range(len(asked)))

    def _take(self, asked: Int64s, wanted: Sequence[str], watched: Sequence[str]) -> dict[int, Row]:
        holders = np.searchsorted(self._ends, asked, side="right")
        rows: dict[int, Row] = {}
        for holder in np.unique(holders).tolist():
            places = np.flatnonzero(holders == holder)
            batch = self._batches[holder]
            taken = batch.take(pa.array(asked[places] - (self._ends[holder] - batch.num_rows)))
            found = plain_rows(taken, wanted, watched, str(self.folder), self.notes)
            rows.update(zip(places.tolist(), found, strict=True))
        return rows


def _indices(order: Sequence[Path]) -> Int64s:
    batches = [batch for file in order for batch in _batches(file)]
    for batch in batches:
        if batch.num_columns != 1 or not pa.types.is_integer(batch.schema.field(0).type):
            raise DataError(
                f"{order[0]} must hold one column of row numbers, but does not. Save the dataset anew."
            )
    parts = [batch.column(0).to_numpy(zero_copy_only=False) for batch in batches]
    return np.concatenate([np.empty(0, np.int64), *parts]).astype(np.int64)


def _batches(file: Path) -> list[Any]:
    try:
        return list(open_arrow(file))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{file} must be a readable arrow file, but is not: {first_line(error)}.") from error
