"""The file that a data command makes: grown part by part beside its place, and put there whole.

    NAME.jsonl, NAME.jsonl.meta             the finished rows, and what made them and came of it
    .NAME.jsonl.work/plan.json, parts.jsonl one line a finished part, appended and synced; gone at the end
    .NAME.jsonl.lock                        held by the process that works on it

A part is made of a few given rows, and depends on their numbers and the options alone: a process that was killed leaves
whole parts, the next makes the rest, and the file is the same byte for byte. A line that was cut, or is not as it was
written, is made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.config.snapshot import write_atomic
from trainer.errors import DataError
from trainer.runtime.publish import sync_folder
from trainer.runtime.seal import DIGEST_BYTES, file_digest, part_digest, read_sealed, sealed_text
from trainer.sample.samples import try_lock

_LOG = logging.getLogger(__name__)
KEY = "synthetic.output"
PLAN, PARTS = "plan.json", "parts.jsonl"
ROWS_VERSION = 1
"""Raise it when the same options make other rows: a file of the old ones is then refused, not taken for these."""

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class MadePart:
    """What came of some given rows."""

    rows: list[Row] = field(default_factory=list)
    notes: list[dict[str, Any]] = field(default_factory=list)
    """One for each given row: what the report is made of, JSON values."""


def key_of(described: Any) -> str:
    """Return the digest of all that decides a file; JSON values."""
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def line_of(number: int, part: MadePart) -> bytes:
    """Return a part as one line that begins with a digest of the rest."""
    body = json.dumps([number, part.rows, part.notes], separators=(",", ":"), default=str).encode()
    return part_digest(body).hex().encode() + b" " + body + b"\n"


def part_of(line: bytes) -> tuple[int, MadePart] | None:
    """Return the number and the part of a line; None if it is not as it was written."""
    digest, body = line[: 2 * DIGEST_BYTES], line[2 * DIGEST_BYTES + 1 : -1]
    if not line.endswith(b"\n") or digest != part_digest(body).hex().encode():
        return None
    number, rows, notes = json.loads(body)
    return int(number), MadePart(rows, notes)


def begun_facts(output: str) -> dict[str, Any]:
    """Return what decided a file that is there, or that was begun; empty where there is none."""
    target = Path(output).expanduser()
    for file in (target.with_name(f"{target.name}.meta"), target.with_name(f".{target.name}.work") / PLAN):
        with contextlib.suppress(OSError, ValueError, KeyError):
            return dict(read_sealed(file)["decided_by"])
    return {}


class MadeFile:
    """A file of rows at its place, or on its way there."""

    def __init__(self, target: Path, verb: str, decided_by: dict[str, Any]) -> None:
        """Name the place, and what decides its content, as JSON values."""
        self.target = target
        self._facts = {
            "verb": verb,
            "decided_by": decided_by,
            "key": key_of([ROWS_VERSION, verb, decided_by]),
        }
        self._key = self._facts["key"]
        self._meta = target.with_name(f"{target.name}.meta")
        self._work = target.with_name(f".{target.name}.work")

    def find(self) -> dict[str, Any] | None:
        """Return the meta of the finished file; None where the place is free.

        Raises:
            DataError: Something else is there, or the file is not as it was written.
        """
        if not os.path.lexists(self.target):
            return None
        try:
            meta = read_sealed(self._meta)
            found, digest = meta["key"], meta["sha256"]
        except (OSError, ValueError, KeyError) as error:
            raise _taken(self.target, "a file that no data command wrote") from error
        if found != self._key:
            raise _taken(self.target, "rows that were made of others, by another model or with other options")
        if not self.target.is_file() or file_digest(self.target) != digest:
            raise _taken(self.target, "rows that were changed since")
        return meta

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the place against other processes.

        Raises:
            DataError: Another one has it.
        """
        lock = try_lock(self.target)
        if lock is None:
            raise DataError(
                f"`{KEY}` must be a file that no other process makes, but another makes {self.target}. Wait for it, or "
                "give another file."
            )
        with lock:
            yield

    def make(
        self,
        num_parts: int,
        make: Callable[[int], MadePart],
        should_stop: Callable[[], bool],
        show: Callable[[int], None],
    ) -> list[dict[str, Any]] | None:
        """Make every part that is missing; return the notes of all, in order, or None when told to stop.

        Args:
            make: Gives the part of a number, from 0.
            show: Told how many are done.
        Raises:
            DataError: The work beside the place is of other rows, another model or other options.
        """
        self._begin()
        notes = self._notes()
        with self._open_parts() as stream:
            for number in range(num_parts):
                if number in notes:
                    continue
                show(len(notes))
                if should_stop():
                    return None
                part = make(number)
                stream.write(line_of(number, part))
                stream.flush()
                os.fsync(stream.fileno())
                notes[number] = part.notes
        show(num_parts)
        return [note for number in range(num_parts) for note in notes[number]]

    def publish(
        self,
        facts: dict[str, Any],
        report: Callable[[int], list[str]],
        is_kept: Callable[[], Callable[[Row], bool]] | None = None,
    ) -> dict[str, Any]:
        """Put the rows in their order in their place, and then remove the work; return the meta as it is kept.

        Args:
            facts: What made them.
            report: Gives the lines about so many rows, once they are written.
            is_kept: Gives what is asked of each row in order.
        """
        asked = is_kept() if is_kept is not None else lambda row: True
        whole, places = self._work / "rows.jsonl", self._places()
        num_rows = 0
        with whole.open("wb") as stream, (self._work / PARTS).open("rb") as parts:
            for number in sorted(places):
                parts.seek(places[number])
                found = part_of(parts.readline())
                assert found is not None, "it was whole a moment ago"
                for row in filter(asked, found[1].rows):
                    stream.write((json.dumps(row, ensure_ascii=False) + "\n").encode(errors="replace"))
                    num_rows += 1
            stream.flush()
            os.fsync(stream.fileno())
        meta = {**self._facts, **facts, "rows": num_rows, "sha256": file_digest(whole)}
        meta["report"] = report(num_rows)
        # First: a file without it would be a stranger's. It alone says nothing.
        write_atomic(self._meta, sealed_text(meta))
        whole.replace(self.target)
        sync_folder(self.target.parent)
        self.clear()
        return meta

    def clear(self) -> None:
        """Remove the work of a file that is in its place."""
        shutil.rmtree(self._work, ignore_errors=True)

    def _begin(self) -> None:
        plan = self._work / PLAN
        try:
            earlier = read_sealed(plan)["key"]
        except FileNotFoundError:
            earlier = None
        except (OSError, ValueError, KeyError) as error:
            _LOG.warning("%s is damaged (%s): what was made so far is made again.", plan, error)
            shutil.rmtree(self._work)
            earlier = None
        if earlier not in (None, self._key):
            raise DataError(
                f"`{KEY}` must be a free place or go on with these very words, but {self._work} holds what was begun "
                "with other rows, another model or other options. Give another file, or delete that folder."
            )
        self._work.mkdir(exist_ok=True)
        if earlier is None:
            write_atomic(plan, sealed_text(self._facts))
            sync_folder(self._work)

    def _open_parts(self) -> Any:
        """Open the parts for appending; a line that was cut is cut off first."""
        file = (self._work / PARTS).open("ab+")
        file.seek(0)
        whole = sum(len(line) for line in file if line.endswith(b"\n"))
        file.truncate(whole)
        file.seek(0, os.SEEK_END)
        return file

    def _notes(self) -> dict[int, list[dict[str, Any]]]:
        found: dict[int, list[dict[str, Any]]] = {}
        for at, (number, part) in self._whole_lines():
            if number not in found:
                found[number] = part.notes
            else:
                _LOG.warning("%s has part %d twice, again at byte %d.", self._work / PARTS, number, at)
        return found

    def _places(self) -> dict[int, int]:
        places: dict[int, int] = {}
        for at, (number, _) in self._whole_lines():
            places.setdefault(number, at)
        return places

    def _whole_lines(self) -> Iterator[tuple[int, tuple[int, MadePart]]]:
        """Yield where each whole line begins and its part; say which are damaged and will be made again."""
        file = self._work / PARTS
        if not file.exists():
            return
        at = 0
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                found = part_of(line)
                if found is not None:
                    yield at, found
                elif line.endswith(b"\n"):
                    _LOG.warning("%s, line %d is not as it was written: made again.", file, number)
                at += len(line)


def in_parts(num_rows: int, size: int) -> Sequence[range]:
    """Return the numbers of the given rows of each part."""
    return [range(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]


def _taken(target: Path, what: str) -> DataError:
    return DataError(
        f"`{KEY}` must be a free place or hold what these words make, but {target} holds {what} instead. Give another "
        "file, or delete that one."
    )
