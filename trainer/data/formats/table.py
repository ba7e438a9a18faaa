"""Reads Arrow tables (Parquet, Arrow files, the hub) by their schema: only the columns asked for, and nothing guessed.

A struct column gives every row the keys of all others, as nulls. They are taken out again wherever the schema
says struct, and nowhere else; a null that the row really held is among them, so they are counted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from trainer.data.formats.fault import first_line, raise_if_disk
from trainer.data.formats.json import JsonError, parse_json
from trainer.data.formats.stream import DataFile
from trainer.errors import DataError

Row = dict[str, Any]

BATCH_ROWS = 1000
CAST = "Write it as text, numbers, lists or structs of these."
PADDED = (
    "null inside of tool calls, arguments or schemas taken for padding of the table (a null that the row really "
    "held looks the same; jsonl, or arguments as a JSON string, would keep it)"
)
WHOLE = "whole number inside of arguments or schemas that the table holds as a decimal, such as 5.0"


class TableFile:
    """A Parquet or Arrow file whose schema was read.

    Raises:
        DataError: If it is none.
    """

    def __init__(self, file: DataFile, kind: str) -> None:
        self.file = file
        self.notes: Counter[str] = Counter()
        """What was noticed, and how often; complete when the rows were read."""
        try:
            self._data: Any = _open_parquet(file) if kind == "parquet" else open_arrow(file)
            schema = self._data.schema_arrow if kind == "parquet" else self._data.schema
        except (pa.ArrowException, OSError, ValueError) as error:
            raise_if_disk(error)  # of a file that is held here while it is read
            raise self._broken(kind, error) from error
        self.columns: list[str] = list(schema.names)
        self._schema = schema
        self._kind = kind

    def read(self, wanted: Sequence[str], watched: Sequence[str] = ()) -> Iterator[tuple[int, Row]]:
        """Read some columns of all rows, each with its number; those watched may be of any type.

        Raises:
            DataError: If the file is broken, or a column has a type that is no text, number, list or struct.
        """
        for column in (*wanted, *watched):
            if self.columns.count(column) > 1:
                raise DataError(
                    f"{self.file} must have one column '{column}', but has {self.columns.count(column)} "
                    "instead. Rename or remove one."
                )
            if column in wanted:
                check_type(column, self._schema.field(column).type, str(self.file), CAST)
        number = 0
        batches = self._batches([*wanted, *watched])
        while True:
            try:
                batch = next(batches, None)
            except (pa.ArrowException, OSError, ValueError, NotImplementedError) as error:
                raise self._broken(self._kind, error) from error
            if batch is None:
                return
            for row in plain_rows(batch, wanted, watched, str(self.file), self.notes):
                number += 1
                yield number, row

    def _batches(self, wanted: Sequence[str]) -> Iterator[Any]:
        if self._kind == "parquet":
            yield from self._data.iter_batches(batch_size=BATCH_ROWS, columns=list(wanted))
        else:
            for batch in self._data:
                yield from _sliced(batch)

    def _broken(self, kind: str, error: Exception) -> DataError:
        return DataError(f"{self.file} must be a readable {kind} file, but is not: {first_line(error)}.")


def _open_parquet(file: DataFile) -> Any:
    return pq.ParquetFile(file if isinstance(file, Path) else file.open("rb"))


def open_arrow(file: DataFile) -> Any:
    """Open an Arrow stream or file as a reader of batches.

    Raises:
        ArrowInvalid: If it is neither; also OSError.
    """
    # Hugging Face's save_to_disk writes streams, others files.
    source = pa.memory_map(str(file)) if isinstance(file, Path) else pa.PythonFile(file.open("rb"))
    try:
        return pyarrow.ipc.open_stream(source)
    except pa.ArrowInvalid:
        source.seek(0)
        reader = pyarrow.ipc.open_file(source)
        batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
        return pa.RecordBatchReader.from_batches(reader.schema, batches)


def _sliced(batch: Any) -> Iterator[Any]:
    for start in range(0, batch.num_rows, BATCH_ROWS):
        yield batch.slice(start, BATCH_ROWS)


def plain_rows(
    batch: Any, wanted: Sequence[str], watched: Sequence[str], where: str, notes: Counter[str]
) -> list[Row]:
    """Turn a batch into rows of plain values; `notes` counts what the table may have changed.

    Columns that are only watched keep their values as Arrow gives them.

    Raises:
        DataError: If a value is not valid.
    """
    columns = []
    names = [*wanted, *watched]
    for name in names:
        array = batch.column(batch.schema.get_field_index(name))
        try:
            values = array.to_pylist()
            columns.append(
                values if name in watched else [_plain(value, array.type, 0, notes) for value in values]
            )
        except (JsonError, ValueError, pa.ArrowException) as error:
            raise DataError(
                f"{where} must hold valid values in column '{name}', but does not: {error}. Mend it."
            ) from error
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def check_type(column: str, kind: Any, where: str, fix: str) -> None:
    """Refuse a column whose values are not what JSON could hold.

    Raises:
        DataError: If its type is, or contains, a date, time, decimal, bytes or something rarer.
    """
    odd = _find_odd(kind)
    if odd is not None:
        raise DataError(
            f"{where} must hold plain values in column '{column}', but holds the type {odd} instead. {fix}"
        )


def _find_odd(kind: Any) -> Any:
    types = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return _find_odd(kind.storage_type)
    if types.is_dictionary(kind):
        return _find_odd(kind.value_type)
    if types.is_struct(kind):
        found = (_find_odd(kind.field(index).type) for index in range(kind.num_fields))
        return next((odd for odd in found if odd is not None), None)
    if types.is_map(kind):
        return _find_odd(kind.item_type) if _is_text(kind.key_type) else kind
    if _is_list(kind):
        return _find_odd(kind.value_type)
    is_plain = _is_text(kind) or types.is_null(kind) or types.is_boolean(kind)
    return None if is_plain or types.is_integer(kind) or types.is_floating(kind) else kind


def _is_text(kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_list(kind: Any) -> bool:
    types = pa.types
    tests = (
        types.is_list,
        types.is_large_list,
        types.is_fixed_size_list,
        types.is_list_view,
        types.is_large_list_view,
    )
    return any(test(kind) for test in tests)


def _plain(value: Any, kind: Any, depth: int, notes: Counter[str]) -> Any:
    """Return a value of an Arrow type without the nulls of its structs; `depth` counts the structs around it."""
    if value is None:
        return None
    if isinstance(kind, pa.BaseExtensionType):
        if kind.extension_name == "arrow.json":
            return parse_json(value)
        return _plain(value, kind.storage_type, depth, notes)
    if pa.types.is_struct(kind):
        return _plain_struct(value, kind, depth, notes)
    if pa.types.is_map(kind):
        pairs = [(key, _plain(item, kind.item_type, depth + 1, notes)) for key, item in value]
        if len(dict(pairs)) != len(pairs):
            raise JsonError("a map has a key twice")
        return dict(pairs)
    if _is_list(kind):
        inner = kind.value_type
        if pa.types.is_integer(inner) or _is_text(inner):
            return value
        return [_plain(item, inner, depth, notes) for item in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise JsonError(f"{value} is no JSON number")
        notes[WHOLE] += depth > 1 and value.is_integer()
    return value


def _plain_struct(value: Any, kind: Any, depth: int, notes: Counter[str]) -> Row:
    kept = {}
    for index in range(kind.num_fields):
        field = kind.field(index)
        inner = value[field.name]
        if inner is not None:
            kept[field.name] = _plain(inner, field.type, depth + 1, notes)
        else:
            notes[PADDED] += depth > 0
    return kept
