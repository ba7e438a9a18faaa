"""Reads JSON and JSON lines exactly: nothing is guessed, rounded or chosen, and a broken value is named by its line.

The standard library takes NaN, keeps the last of two equal keys, and stops with an error of its own at deep
nesting and at long integers; here each is a sentence.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

from trainer.data.formats.stream import DataFile, open_text
from trainer.errors import DataError

Row = dict[str, Any]

MAX_DEPTH = 100
"""Deeper values stop the stages after this one, and no data set nests like this."""
MAX_DIGITS = 4300
"""As Python limits them."""


class JsonError(Exception):
    """A text that is not the JSON we take: what is wrong, and on which of its lines if that is known."""

    def __init__(self, what: str, line: int | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.line = line


def parse_json(text: str) -> Any:
    """Parse one JSON value.

    Raises:
        JsonError: If it is not valid, repeats a key, is nested too deep, or holds a number that is none.
    """
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_refuse_constant,
            parse_int=_integer,
            parse_float=_real,
        )
    except json.JSONDecodeError as error:
        kept = text.rstrip()
        if kept and (error.pos >= len(kept) or error.msg.startswith("Unterminated")):
            end = len(kept) - kept.rfind("\n") - 1
            raise JsonError(
                f"not valid JSON (cut at column {end}, before its end)", kept.count("\n") + 1
            ) from error
        raise JsonError(f"not valid JSON (column {error.colno}: {error.msg})", error.lineno) from error
    except RecursionError:
        raise JsonError(f"JSON nested more than {MAX_DEPTH} deep") from None
    if text.count("[") + text.count("{") > MAX_DEPTH and _is_deeper(value, MAX_DEPTH):
        raise JsonError(f"JSON nested more than {MAX_DEPTH} deep")
    return value


def _object(pairs: list[tuple[str, Any]]) -> Row:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise JsonError(f"JSON with the key {twice!r} twice in one object")
    return made


def _refuse_constant(name: str) -> Any:
    raise JsonError(f"JSON with {name}, which is no JSON number")


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise JsonError(f"JSON with an integer of {len(digits)} digits")
    return int(digits)


def _real(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise JsonError(f"JSON with the number {digits[:20]}, which is too large")
    return value


def _is_deeper(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return True


def read_json_lines(file: DataFile) -> Iterator[tuple[int, Row]]:
    """Read the rows of a file of JSON lines, each with its line; blank lines are passed over.

    Raises:
        DataError: If a line is not a JSON object.
    """
    with open_text(file) as stream:
        yield from _read_lines(stream, file)


def _read_lines(lines: Iterable[str], file: DataFile) -> Iterator[tuple[int, Row]]:
    is_first = True
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if is_first and _begins_one_value(line):
            raise DataError(
                f"{file} must hold a JSON object on each line, but is one JSON value over all of it instead. Rename it "
                f"to {_as_json(file.name)}, which is read so, or write each row on a line of its own."
            )
        is_first = False
        try:
            row = parse_json(line)
        except JsonError as error:
            raise DataError(
                f"{file}, line {number} must be a JSON object, but is {error.what} instead. Mend or "
                "remove the line."
            ) from error
        yield number, _as_row(row, f"{file}, line {number}")


def _begins_one_value(line: str) -> bool:
    """Say whether a first line is that of a list of rows, or of an object that goes on below."""
    begun = line.strip()
    if not begun.startswith("["):
        return begun == "{"
    try:
        value = parse_json(begun)
    except JsonError:
        return True
    return isinstance(value, list) and all(isinstance(one, dict) for one in value)


def _as_json(name: str) -> str:
    """Return the name of a file of JSON lines as that of one of JSON, compressed or not."""
    return re.sub(r"\.(jsonl|ndjson|jsonlines)(?=$|\.)", ".json", name, flags=re.IGNORECASE)


def read_json(file: DataFile) -> Iterator[tuple[int, Row]]:
    """Read one array, one object of objects (id: row), one row, or JSON lines under the wrong name.

    Raises:
        DataError: If the file holds something else.
    """
    with open_text(file) as stream:
        text = stream.read()
    first_line = text.lstrip().partition("\n")[0].rstrip()
    try:
        content = parse_json(text)
    except JsonError as error:
        if first_line.startswith("{") and first_line.endswith("}"):
            yield from _read_lines(io.StringIO(text), file)
            return
        where = str(file) if error.line is None else f"{file}, line {error.line}"
        raise DataError(f"{where} must be valid JSON, but is {error.what} instead. Mend the file.") from error
    del text
    if isinstance(content, dict):
        keyed = content and all(isinstance(row, dict) for row in content.values())
        content = list(content.values()) if keyed else [content]
    if not isinstance(content, list):
        raise DataError(f"{file} must hold a list of JSON objects, but holds a single value instead.")
    for number, row in enumerate(content, 1):
        yield number, _as_row(row, f"{file}, row {number}")


def _as_row(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        kind = "null" if value is None else f"a {type(value).__name__}"
        raise DataError(f"{where} must be a JSON object, but is {kind} instead. Mend or remove it.")
    return value
