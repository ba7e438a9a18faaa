"""What people said of rows that a model wrote: a file of verdicts beside the source, row by row. Loads no torch.

A row is named by its line and a digest of what it holds, so that verdicts about other rows are found out.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config.many import many
from trainer.config.snapshot import write_atomic
from trainer.data.formats.json import JsonError, parse_json
from trainer.errors import DataError
from trainer.runtime.seal import file_digest

SUFFIX = ".verdicts"
"""Behind the name of the source: no kind of data, so that a folder of sources is read without it."""
VERSION = 1
ACCEPT, REJECT = "accept", "reject"
PROVENANCE = "provenance"
DIGEST_HEX = 16


@dataclass(frozen=True, slots=True)
class ReviewedRow:
    """A row of a source that is to be looked at."""

    line: int
    """From 1."""
    digest: str
    row: dict[str, Any]


@dataclass(frozen=True, slots=True)
class RowVerdict:
    """What one person said of one row."""

    line: int
    digest: str
    verdict: str
    """accept or reject."""
    note: str
    reviewer: str
    time: str
    """When it was given, in UTC, as ISO 8601."""


@dataclass(frozen=True, slots=True)
class Verdicts:
    """All that was said of one file."""

    sha256: str
    """Of the file as it was when they were given."""
    verdicts: tuple[RowVerdict, ...]

    def counted(self) -> tuple[int, int]:
        """Return (rows accepted, rows judged); a row is accepted where more of its reviewers accept than reject it."""
        votes: defaultdict[int, int] = defaultdict(int)
        for one in self.verdicts:
            votes[one.line] += 1 if one.verdict == ACCEPT else -1
        return sum(vote > 0 for vote in votes.values()), len(votes)


def verdicts_file(source: Path) -> Path:
    """Return where the verdicts about a file lie."""
    return source.with_name(source.name + SUFFIX)


def read_verdicts(source: Path) -> Verdicts | None:
    """Return the verdicts about a file; None where there are none.

    Raises:
        DataError: They cannot be read.
    """
    path = verdicts_file(source)
    if not path.exists():
        return None
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        if plain["version"] != VERSION:
            raise ValueError(f"it is of version {plain['version']}")
        return Verdicts(str(plain["sha256"]), tuple(RowVerdict(**one) for one in plain["verdicts"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path} must hold what `palimpsest data review import` wrote, but cannot be read: {error}. Delete it and "
            "import the verdicts again."
        ) from error


def add_verdicts(source: Path, given: Sequence[RowVerdict]) -> Verdicts:
    """Write verdicts beside those that are known, and return all; a reviewer's later word on a row replaces the first.

    Those about the file as it was before are left out, unless the row is the same.
    """
    sha256 = file_digest(source)
    known = read_verdicts(source)
    before = () if known is None else known.verdicts
    if known is not None and known.sha256 != sha256:
        same = {one.line: one.digest for one in read_rows(source, {one.line for one in before})}
        before = tuple(one for one in before if same.get(one.line) == one.digest)
    by_row = {(one.line, one.reviewer): one for one in (*before, *given)}
    verdicts = tuple(by_row[key] for key in sorted(by_row))
    plain = [dataclasses.asdict(one) for one in verdicts]
    text = json.dumps({"version": VERSION, "sha256": sha256, "verdicts": plain}, indent=1, ensure_ascii=False)
    write_atomic(verdicts_file(source), text + "\n")
    return Verdicts(sha256, verdicts)


def sample_rows(source: Path, num: int, seed: int) -> tuple[list[ReviewedRow], int]:
    """Draw rows of a file without replacement, in their order; return them and how many rows there are.

    Raises:
        DataError: The file has no row, or a line that is drawn is no JSON object.
    """
    lines = [number for number, line in _lines(source) if line.strip()]
    if not lines:
        raise DataError(f"{source} must hold rows to be looked at, but is empty.")
    chosen = lines if num >= len(lines) else random.Random(seed).sample(lines, num)
    return list(read_rows(source, set(chosen))), len(lines)


def read_rows(source: Path, wanted: set[int]) -> Iterator[ReviewedRow]:
    """Yield the rows of these lines.

    Raises:
        DataError: One is no JSON object.
    """
    for number, line in _lines(source):
        if number not in wanted or not line.strip():
            continue
        try:
            row = parse_json(line)
        except JsonError as error:
            raise DataError(
                f"{source}, line {number} must be a JSON object, but is {error}. Mend it."
            ) from error
        if not isinstance(row, dict):
            raise DataError(f"{source}, line {number} must be a JSON object, but is {line[:40]!r}. Mend it.")
        yield ReviewedRow(number, row_digest(row), row)


def row_digest(row: dict[str, Any]) -> str:
    """Name what a row holds, in a word that no spreadsheet takes for a number."""
    text = json.dumps(row, sort_keys=True, ensure_ascii=True)
    return "r" + hashlib.sha256(text.encode()).hexdigest()[:DIGEST_HEX]


def _lines(source: Path) -> Iterator[tuple[int, str]]:
    try:
        with source.open(encoding="utf-8") as file:
            yield from enumerate(file, start=1)
    except OSError as error:
        raise DataError(f"{source} cannot be read ({error.strerror}). Check the path.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{source} must be UTF-8, but is not. Convert it, for example with iconv.") from error


def check_about(source: Path, given: Sequence[RowVerdict], origin: str) -> None:
    """Raise where verdicts are about other rows than those of a file.

    Args:
        origin: Where the verdicts are from, for the sentence.
    Raises:
        DataError: Names the first of them.
    """
    found = {one.line: one.digest for one in read_rows(source, {one.line for one in given})}
    other = [one for one in given if found.get(one.line) != one.digest]
    if other:
        raise DataError(
            f"{origin} must hold verdicts about the rows of {source}, but {many(len(other), 'verdict')} of "
            f"{len(given)} are about others; the first is about line {other[0].line}. Import them for the file that "
            f"was exported, or export it again: palimpsest data review export {source}"
        )


def names_model(value: Any) -> bool:
    """Tell whether the provenance of a row names a model: a key of it has `model` in it."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return False
    return isinstance(value, dict) and any("model" in str(key).lower() and value[key] for key in value)
