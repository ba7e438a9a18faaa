"""Reads the rows of a source in order, in batches, each row with the place it came from.

The only file that imports `datasets`, when it is needed: it reads parquet, csv and the hub. JSON and txt are read here,
because its JSON reader turns strings that look like dates into timestamps, gives every row the keys
of all others, and does not say on which line a file is broken.
"""

from __future__ import annotations

import csv
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.config.data import SourceConfig
from trainer.data.document import optional_columns, required_columns
from trainer.data.files import BrokenFile, file_kind, open_text
from trainer.data.types import RowBatch
from trainer.errors import DataError

if TYPE_CHECKING:
    import datasets

Row = dict[str, Any]
NumberedRow = tuple[int, Row]

BATCH_ROWS = 1000
BATCH_CHARS = 1 << 20
BLANK_LINES = re.compile(r"\n[^\S\n]*\n\s*")


def read_files(name: str, source: SourceConfig, files: list[Path], cache: Path) -> Iterator[RowBatch]:
    """Read the rows of local files, file after file; `cache` is a folder for `datasets` to fill.

    Raises:
        DataError: If a file cannot be read or has not the columns that the source names.
    """
    seen: set[str] = set()
    num_left = source.max_documents
    for file in files:
        if num_left == 0:
            return
        kind = file_kind(file)
        assert kind is not None
        unit = "line" if kind == "jsonl" or (kind == "txt" and source.txt_documents == "line") else "row"
        rows = _read_file(name, source, file, kind, cache)
        rows = islice(_checked(name, source, file.name, rows, seen), num_left)
        for batch in _batched(rows, str(file), unit):
            num_left = None if num_left is None else num_left - len(batch.rows)
            yield batch
    _check_optional(name, source, seen)


def open_dataset(name: str, source: SourceConfig, cache: Path) -> datasets.Dataset:
    """Download or find a Hugging Face dataset, whole.

    Raises:
        DataError: If it cannot be had.
    """
    import datasets

    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(
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


def read_dataset(name: str, source: SourceConfig, dataset: datasets.Dataset) -> Iterator[RowBatch]:
    """Read the rows of a Hugging Face dataset in its order."""
    if source.max_documents is not None:
        dataset = dataset.select(range(min(source.max_documents, len(dataset))))
    label = str(source.dataset)
    _check_columns(name, source, label, dataset.column_names)
    rows = _table_rows(source, dataset)
    yield from _batched(rows, label, "row")


def _read_file(name: str, source: SourceConfig, file: Path, kind: str, cache: Path) -> Iterator[NumberedRow]:
    try:
        match kind:
            case "jsonl":
                yield from _json_lines(file)
            case "json":
                yield from _json_file(file)
            case "txt":
                for number, text in _texts(file, source.txt_documents):
                    yield number, {source.columns.text: text}
            case _:
                yield from _read_table(name, source, file, kind, cache)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file} must be UTF-8, but has the byte {error.object[error.start]:#04x} at offset "
            f"{error.start} of a block instead. Convert it, for example with iconv."
        ) from error
    except (EOFError, OSError, zlib.error, BrokenFile) as error:
        _raise_if_disk(error)
        raise DataError(f"{file} cannot be read: {_first_line(error)}.") from error


def _json_lines(file: Path) -> Iterator[NumberedRow]:
    with open_text(file) as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{file}, line {number} must be a JSON object, but is not valid JSON instead "
                    f"({error.msg} at column {error.colno}). Mend or remove the line."
                ) from error
            yield number, _as_row(row, f"{file}, line {number}")


def _json_file(file: Path) -> Iterator[NumberedRow]:
    # One array, one object of objects (id: row), or JSON lines under the wrong name.
    with open_text(file) as stream:
        text = stream.read()
    first_line = next((line for line in text.splitlines() if line.strip()), "")
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        if first_line.lstrip().startswith("{") and first_line.rstrip().endswith("}"):
            yield from _json_lines(file)
            return
        raise DataError(
            f"{file}, line {error.lineno} must be valid JSON, but is not ({error.msg} at column "
            f"{error.colno}). Mend the file."
        ) from error
    if isinstance(content, dict):
        keyed = content and all(isinstance(row, dict) for row in content.values())
        content = list(content.values()) if keyed else [content]
    if not isinstance(content, list):
        raise DataError(f"{file} must hold a list of JSON objects, but holds a single value instead.")
    for number, row in enumerate(content, 1):
        yield number, _as_row(row, f"{file}, row {number}")


def _as_row(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise DataError(f"{where} must be a JSON object, but is a {kind} instead. Mend or remove it.")
    return value


def _texts(file: Path, documents: str) -> Iterator[tuple[int, str]]:
    with open_text(file) as stream:
        if documents == "line":
            for number, line in enumerate(stream, 1):
                yield number, line.rstrip("\n")
        elif documents == "paragraph":
            paragraphs = BLANK_LINES.split(stream.read())
            yield from enumerate((p for p in paragraphs if p.strip()), 1)
        else:
            yield 1, stream.read()


def _read_table(name: str, source: SourceConfig, file: Path, kind: str, cache: Path) -> Iterator[NumberedRow]:
    import datasets

    datasets.disable_progress_bars()
    options: dict[str, Any] = {}
    if kind == "csv":
        with open_text(file) as stream:
            header = next(csv.reader(stream), [])
        if not header:
            return
        # Everything is text: "007" is no number and "NA" is not missing.
        features = datasets.Features({column: datasets.Value("string") for column in header})
        options = {"features": features, "keep_default_na": False}
    try:
        dataset = datasets.load_dataset(
            kind, data_files=[glob_escape(file)], split="train", cache_dir=str(cache), **options
        )
    except Exception as error:  # `datasets` wraps whatever its readers raise
        _raise_if_disk(error)
        raise DataError(
            f"{file} must be a readable {kind} file, but is not: {_first_line(error.__cause__ or error)}."
        ) from error
    _check_columns(name, source, file.name, dataset.column_names)
    yield from _table_rows(source, dataset)


def glob_escape(file: Path) -> str:
    """Quote a path for `datasets`, which takes data files as patterns."""
    return re.sub(r"([*?\[])", r"[\1]", str(file.resolve()))


def _table_rows(source: SourceConfig, dataset: datasets.Dataset) -> Iterator[NumberedRow]:
    wanted = {**required_columns(source), **optional_columns(source)}.values()
    dataset = dataset.select_columns(list(dict.fromkeys(wanted)))
    for number, row in enumerate(dataset, 1):
        # A table gives every row the keys of all others, set to None.
        yield number, _without_none(row)


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None or k == "content"}
    if isinstance(value, list):
        return [_without_none(v) for v in value]
    return value


def _checked(
    name: str, source: SourceConfig, file: str, rows: Iterable[NumberedRow], seen: set[str]
) -> Iterator[NumberedRow]:
    required = required_columns(source)
    kept = {**required, **optional_columns(source)}.values()
    tabular = file_kind(Path(file)) in ("parquet", "csv")
    for number, row in rows:
        if tabular:
            seen.update(kept)
        else:
            if any(column not in row for column in required.values()):
                _check_columns(name, source, f"{file} (row {number})", list(row), required_only=True)
            seen.update(row.keys() & set(kept))
        yield number, {column: row.get(column) for column in kept}


def _check_columns(
    name: str, source: SourceConfig, file: str, columns: list[str], required_only: bool = False
) -> None:
    wanted = required_columns(source) | ({} if required_only else optional_columns(source))
    for key, column in wanted.items():
        if column not in columns:
            raise DataError(
                f"`data.sources.{name}.columns.{key}` must name a column of {file}, but is '{column}' "
                f"instead; the columns are [{', '.join(columns)}]."
            )


def _check_optional(name: str, source: SourceConfig, seen: set[str]) -> None:
    for key, column in optional_columns(source).items():
        if seen and column not in seen:
            raise DataError(
                f"`data.sources.{name}.columns.{key}` must name a column that some row has, but is "
                f"'{column}' instead, which no row has. Mend the name or leave it out."
            )


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
