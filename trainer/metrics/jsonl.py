"""metrics.jsonl and ledger.jsonl: append-only, one JSON object a line.

A line torn by a killed process is dropped when the file is opened again or read; what a full disk does not take waits
(trainer/metrics/line_file.py). Who has lost the run directory to another run appends nothing any more.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.config.fence import check_publish
from trainer.errors import TrainerError
from trainer.metrics.line_file import LineFile
from trainer.metrics.sink import Record

_LOG = logging.getLogger(__name__)
_CHAIN = ',"chain":"'
_MOST = 1e18
"""No step, time or count of ours is larger."""
# JSON has no word for these, and a bare NaN breaks strict readers.
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class JsonlSink:
    """Appends records to metrics.jsonl.

    Ranks:
        Rank 0 only.
    """

    def __init__(self, path: Path) -> None:
        """Open the file for appending, after its torn last line, if any, is cut off."""
        self._file = _opened(path)

    @property
    def folder(self) -> Path:
        """Return where the file is."""
        return self._file.path.parent

    def write(self, step: int, record: Record) -> None:
        """Append one line and hand it to the operating system, now or with a later one."""
        self._file.add(_encode({"step": step, "time": time.time(), **record}), to_disk=False)

    def sync(self) -> None:
        """Bring every line to the disk.

        Raises:
            OSError: Some still wait.
        """
        self._file.sync()

    def go_back(self, step: int, aside: Path) -> int:
        """Move the lines after a step to another file, because those steps come again; return how many."""
        path = self._file.path
        self.close("gone back")
        num_moved = truncate_after(path, step, aside / path.name)
        self._file = _opened(path)
        return num_moved

    def close(self, status: str) -> None:
        """Put the file on disk and close it.

        Raises:
            OSError: The disk does not take all of it.
        """
        self._file.close()


class Ledger:
    """Appends events to ledger.jsonl; each is on disk when `write` returns, unless the disk does not take it.

    Every line ends with a digest of itself and of the line before: one that was changed, or is missing, is found.

    Ranks:
        Rank 0 only.
    """

    def __init__(self, path: Path) -> None:
        """Open the file for appending, after its torn last line, if any, is cut off; say which line was changed."""
        self._file = _opened(path)
        lines = path.read_bytes().splitlines()
        number = changed_line(path)
        if number is not None:
            _LOG.warning(
                "%s:%d is not as it was written: what it says of the run may not be true.", path, number
            )
        self._chain = _chain_of(lines[-1]) if lines else ""

    def write(self, event: str, step: int, **fields: object) -> None:
        """Append one event; fields are plain JSON values."""
        body = _encode({"event": event, "step": step, "time": time.time(), **fields})[:-2]
        self._chain = _chained(self._chain, body)
        self._file.add(f'{body}{_CHAIN}{self._chain}"}}\n', to_disk=True)

    def sync(self) -> None:
        """Bring every event to the disk.

        Raises:
            OSError: Some still wait.
        """
        self._file.sync()

    def close(self) -> None:
        """Close the file.

        Raises:
            OSError: The disk does not take all of it.
        """
        self._file.close()


def changed_line(path: Path) -> int | None:
    """Return the number of the first line of a ledger that is not as it was written, or follows one that is missing."""
    chain = ""
    for number, line in enumerate(path.read_bytes().splitlines() if path.exists() else (), start=1):
        body, found, rest = line.decode("utf-8", errors="replace").rpartition(_CHAIN)
        before, chain = chain, _chain_of(line)
        if not found and not before:
            continue  # of a version without
        if not found or rest != f'{chain}"}}' or chain != _chained(before, body):
            return number
    return None


def _chained(before: str, body: str) -> str:
    return hashlib.sha256(f"{before}{body}".encode()).hexdigest()[:32]


def _chain_of(line: bytes) -> str:
    """Return the digest at the end of a line; nothing where there is none."""
    return (
        line.decode("utf-8", errors="replace").rpartition(_CHAIN)[2][:32] if _CHAIN.encode() in line else ""
    )


def read(path: Path) -> list[dict[str, Any]]:
    """Return all records; a torn last line is left out, a missing file has none.

    Raises:
        TrainerError: If a line other than the last is not a JSON object.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines()
    records = []
    for number, line in enumerate(lines, start=1):
        record = _decode(line)
        if record is not None:
            records.append(record)
        elif number < len(lines):
            raise TrainerError(
                f"{path}:{number} must be one JSON object, but is {line[:40]!r} instead. Delete that line."
            )
    return records


def read_events(path: Path) -> list[dict[str, Any]]:
    """Return the events of a ledger; `changed_line` names one that lacks what every event has, and it is left out.

    Raises:
        TrainerError: As `read`.
    """
    return [
        one for one in read(path) if isinstance(one.get("event"), str) and has_numbers(one, "step", "time")
    ]


def has_numbers(record: Mapping[str, Any], *keys: str) -> bool:
    """Tell whether these are all numbers that can be reckoned with: a damaged line may hold anything."""
    values = [record.get(key) for key in keys]
    return all(isinstance(value, int | float) and abs(value) < _MOST for value in values)


def truncate_after(path: Path, step: int, aside: Path) -> int:
    """Move the lines after `step` and those that cannot be read to another file; return how many.

    They are on disk there before the file is replaced, in one piece: a crash loses none.
    """
    if not path.exists():
        return 0
    kept: list[bytes] = []
    moved: list[bytes] = []
    for line in path.read_bytes().splitlines():
        record = _decode(line)
        at = None if record is None else record.get("step", 0)
        is_kept = isinstance(at, int) and at <= step
        (kept if is_kept else moved).append(line)
    if moved:
        aside.parent.mkdir(parents=True, exist_ok=True)
        _write_lines(aside, moved)
        check_publish(path)
        draft = path.with_name(path.name + ".tmp")
        _write_lines(draft, kept)
        os.replace(draft, path)
    return len(moved)


def _write_lines(path: Path, lines: list[bytes]) -> None:
    with path.open("wb") as file:
        file.writelines(line + b"\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())


def _opened(path: Path) -> LineFile:
    path.parent.mkdir(parents=True, exist_ok=True)
    check_publish(path)
    _cut_torn_tail(path)
    return LineFile(path, path.stat().st_size if path.exists() else 0)


def _cut_torn_tail(path: Path) -> None:
    if not path.exists():
        return
    with path.open("rb+") as file:
        content = file.read()
        start = content.rfind(b"\n") + 1
        if start == len(content):
            return
        if _decode(content[start:]) is None:
            file.truncate(start)
        else:
            file.write(b"\n")


def _encode(record: dict[str, Any]) -> str:
    return json.dumps(_spell(record), allow_nan=False, separators=(",", ":")) + "\n"


def _spell(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _spell(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_spell(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _decode(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    return {k: _NON_FINITE.get(v, v) if isinstance(v, str) else v for k, v in record.items()}
