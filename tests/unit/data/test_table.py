from __future__ import annotations

import datetime
import decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.data.formats.table import PADDED, WHOLE, TableFile
from trainer.errors import DataError


def open_table(tmp_path: Path, table: Any) -> TableFile:
    pq.write_table(table, tmp_path / "a.parquet")
    return TableFile(tmp_path / "a.parquet", "parquet")


def values(file: TableFile, column: str) -> list[Any]:
    return [row[column] for _, row in file.read([column])]


def test_nulls_of_structs_are_padding_whatever_their_key_and_those_inside_are_counted(tmp_path: Path) -> None:
    """A failure points at a reader that keeps or strips by the name of a key."""
    calls = [{"arguments": {"path": "a"}}, {"arguments": {"path": "b", "content": "c", "role": "d"}}]
    table = pa.table({"m": [[{"content": None, "call": calls[0]}], [{"content": "x", "call": calls[1]}]]})
    file = open_table(tmp_path, table)
    assert values(file, "m") == [[{"call": calls[0]}], [{"content": "x", "call": calls[1]}]]
    assert +file.notes == {PADDED: 2}


def test_nulls_of_lists_and_maps_are_kept(tmp_path: Path) -> None:
    kind = pa.map_(pa.string(), pa.string())
    table = pa.table({"m": pa.array([[("a", None), ("b", "x")]], kind), "l": [["x", None]]})
    file = open_table(tmp_path, table)
    assert values(file, "m") == [{"a": None, "b": "x"}] and values(file, "l") == [["x", None]]
    assert not +file.notes


def test_a_struct_that_is_null_goes_and_one_of_nulls_is_empty(tmp_path: Path) -> None:
    table = pa.table({"m": [{"f": {"a": 1}}, {"f": {"a": None}}, {"f": None}, None]})
    assert values(open_table(tmp_path, table), "m") == [{"f": {"a": 1}}, {"f": {}}, {}, None]


def test_whole_numbers_that_the_table_made_decimals_are_counted(tmp_path: Path) -> None:
    table = pa.table({"m": [{"f": {"a": 5.0}}, {"f": {"a": 0.5}}]})
    file = open_table(tmp_path, table)
    values(file, "m")
    assert +file.notes == {WHOLE: 1}


@pytest.mark.parametrize(
    "array",
    [
        pa.array(["x", "y"], pa.large_string()),
        pa.array(["x", "y"], pa.string_view()),
        pa.array(["x", "y"]).dictionary_encode(),
        pa.chunked_array([["x"], ["y"]]),
    ],
)
def test_every_way_to_store_text_gives_text(array: Any, tmp_path: Path) -> None:
    assert values(open_table(tmp_path, pa.table({"t": array})), "t") == ["x", "y"]


@pytest.mark.parametrize(
    "kind",
    [pa.list_(pa.int32()), pa.large_list(pa.int64()), pa.list_(pa.uint8(), 2)],
)
def test_every_way_to_store_lists_gives_lists(kind: Any, tmp_path: Path) -> None:
    assert values(open_table(tmp_path, pa.table({"t": pa.array([[1, 2]], kind)})), "t") == [[1, 2]]


@pytest.mark.parametrize(
    "value",
    [
        datetime.datetime(2020, 1, 1),
        datetime.date(2020, 1, 1),
        decimal.Decimal("1.5"),
        b"bytes",
        [b"bytes"],
        {"a": {"b": [datetime.timedelta(1)]}},
    ],
)
def test_values_that_are_no_json_are_refused_with_their_column_and_type(value: Any, tmp_path: Path) -> None:
    file = open_table(tmp_path, pa.table({"t": [value], "u": ["x"]}))
    with pytest.raises(DataError, match="plain values in column 't', but holds the type"):
        values(file, "t")
    assert values(file, "u") == ["x"]


def test_columns_that_are_not_read_may_hold_anything(tmp_path: Path) -> None:
    kind = pa.map_(pa.int32(), pa.list_(pa.decimal128(5)))
    table = pa.table({"t": ["x"], "odd": pa.array([[(1, [decimal.Decimal(1)])]], kind), "when": [b"x"]})
    assert values(open_table(tmp_path, table), "t") == ["x"]


def test_nan_and_a_map_with_a_key_twice_are_refused(tmp_path: Path) -> None:
    maps = pa.array([[("a", "1"), ("a", "2")]], pa.map_(pa.string(), pa.string()))
    for column in (maps, pa.array([{"a": float("nan")}])):
        with pytest.raises(DataError, match="must hold valid values in column 't'"):
            values(open_table(tmp_path, pa.table({"t": column})), "t")


def test_a_column_that_is_there_twice_is_refused_if_it_is_read(tmp_path: Path) -> None:
    table = pa.table([pa.array(["x"]), pa.array(["y"]), pa.array(["z"])], names=["t", "t", "u"])
    file = open_table(tmp_path, table)
    assert values(file, "u") == ["z"]
    with pytest.raises(DataError, match="one column 't'"):
        values(file, "t")


def test_a_table_without_rows_and_one_of_many_batches_are_read(tmp_path: Path) -> None:
    assert values(open_table(tmp_path, pa.table({"t": pa.array([], pa.string())})), "t") == []
    many = [str(i) for i in range(2_500)]
    file = open_table(tmp_path, pa.table({"t": many}))
    assert [number for number, _ in file.read(["t"])] == list(range(1, 2_501))


@pytest.mark.parametrize("make", [pa.ipc.new_stream, pa.ipc.new_file])
def test_arrow_files_and_streams_are_read(make: Any, tmp_path: Path) -> None:
    table = pa.table({"t": [str(i) for i in range(2_500)]})
    with make(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    assert values(TableFile(tmp_path / "a.arrow", "arrow"), "t") == table["t"].to_pylist()


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize("data", [b"", b"PAR1", b"no table at all"])
def test_a_file_that_is_no_table_is_named(kind: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(DataError, match=f"must be a readable {kind} file"):
        TableFile(tmp_path / "a", kind)
