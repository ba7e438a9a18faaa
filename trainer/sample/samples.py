"""The folder of generated samples: grown batch by batch beside its place, and put there whole.

    NAME/generated.jsonl, meta.json      the finished store
    .NAME.work/plan.json, part-R.jsonl   one line a finished batch, appended and synced; gone at the end
    .NAME.lock                           held by the first rank that works on it

A line that was cut when a process was killed, or is not as it was written, is dropped, and its batch is sampled again
with its own seed. Finished samples are compared with their digest when they are found, and before they are prepared.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from trainer.config.snapshot import write_atomic
from trainer.errors import DataError
from trainer.runtime.publish import put_in_place, sync_folder
from trainer.runtime.seal import DIGEST_BYTES, file_digest, part_digest, read_sealed, sealed_text
from trainer.sample.filters import DUPLICATE

_LOG = logging.getLogger(__name__)
SAMPLES = "generated.jsonl"
META = "meta.json"
PLAN = "plan.json"
NUM_EXAMPLES = 3
"""Dropped samples of each reason that meta.json shows."""
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_WRITABLE = (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST)


@dataclass(frozen=True, slots=True)
class DraftOutcome:
    """What became of one sample; small, so that every rank can know every sample's."""

    num_tokens: int
    fingerprint: str
    fault: str | None


@dataclass(slots=True)
class Batch:
    """The outcomes of a batch, its cost, and the rows themselves where they were sampled."""

    number: int
    num_sampled: int
    """Tokens sampled, dropped samples and end marks included."""
    seconds_s: float
    outcomes: list[DraftOutcome]
    rows: list[dict[str, Any]]

    def without_rows(self) -> Batch:
        """Return what other ranks need."""
        return Batch(self.number, self.num_sampled, self.seconds_s, self.outcomes, [])

    def to_line(self) -> bytes:
        """Return the batch as one line that begins with a digest of the rest."""
        outcomes = [[o.num_tokens, o.fingerprint, o.fault] for o in self.outcomes]
        plain = [self.number, self.num_sampled, self.seconds_s, outcomes, self.rows]
        body = json.dumps(plain, separators=(",", ":")).encode()
        return part_digest(body).hex().encode() + b" " + body + b"\n"


def parse_line(line: bytes) -> Batch | None:
    """Return the batch of a line; None if it is not as it was written."""
    digest, body = line[: 2 * DIGEST_BYTES], line[2 * DIGEST_BYTES + 1 : -1]
    if line != part_digest(body).hex().encode() + b" " + body + b"\n" or len(digest) != 2 * DIGEST_BYTES:
        return None
    number, num_sampled, seconds_s, outcomes, rows = json.loads(body)
    return Batch(number, num_sampled, seconds_s, [DraftOutcome(*outcome) for outcome in outcomes], rows)


def find_store(target: Path, key: str) -> dict[str, Any] | None:
    """Return the meta of the finished store at `target`, or None when the place is free.

    Raises:
        DataError: Something else is there.
    """
    try:
        meta = read_sealed(target / META)
        found, size = meta["key"], (target / SAMPLES).stat().st_size
    except (OSError, ValueError, KeyError, TypeError) as error:
        if not target.exists() or (target.is_dir() and not any(target.iterdir())):
            return None
        raise _taken(target, "something that is no whole store of samples") from error
    if found != key:
        raise _taken(target, "samples of another model or other options")
    if size != meta["bytes"]:
        raise _taken(target, f"a damaged store ({SAMPLES} has {size} bytes, not {meta['bytes']})")
    if file_digest(target / SAMPLES) != meta["sha256"]:
        raise _taken(target, f"a damaged store ({SAMPLES} is not as it was written)")
    return meta


def check_samples(file: Path) -> None:
    """Raise when a file of samples is not as `palimpsest replay generate` wrote it.

    Raises:
        DataError: Names the file.
    """
    try:
        meta = read_sealed(file.parent / META)
        reason = "" if file_digest(file) == meta["sha256"] else f"{SAMPLES} is not as it was written"
    except (OSError, ValueError, KeyError) as error:
        reason = str(error)
    if reason:
        raise DataError(
            f"`replay.generate.output_dir` must hold samples as they were written, but {file.parent} does not: "
            f"{reason}. Delete that folder and run palimpsest replay generate again, or copy the file elsewhere if "
            "you edited it."
        )


def _refuse_content(target: Path) -> bool:
    """Raise when somebody put something in the place while the samples were made."""
    if not target.is_dir() or any(target.iterdir()):
        raise _taken(target, "what came there meanwhile")
    return False


def _taken(target: Path, what: str) -> DataError:
    return DataError(
        f"`replay.generate.output_dir` must be a free folder or hold these very samples, but {target} holds {what} "
        "instead. Give another folder, or delete that one."
    )


@contextlib.contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turn errors of the file system into a sentence; what was sampled stays for the next start.

    Raises:
        DataError: The disk is full or the folder cannot be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL_DISK:
            raise DataError(
                f"`data.cache_dir` (or replay.generate.output_dir) must have room for the samples, but {folder} "
                "has none left. Free some and start the same command again: it goes on where it stopped."
            ) from error
        if error.errno in _NOT_WRITABLE:
            raise DataError(
                f"`data.cache_dir` (or replay.generate.output_dir) must be a folder you can write to, but {folder} "
                f"is not: {error.strerror}. Set data.cache_dir."
            ) from error
        raise


def try_lock(target: Path) -> IO[str] | None:
    """Return the lock of a store, or None while another process has it. Closing it lets it go.

    Ranks:
        Rank 0 only.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    # Never deleted: a second process could hold a lock on a name that is gone.
    file = (target.parent / f".{target.name}.lock").open("a", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


class WorkFolder:
    """The unfinished store beside its place."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = target.parent / f".{target.name}.work"

    def begin(self, plan: dict[str, Any]) -> dict[str, Any]:
        """Return the plan that an earlier start wrote, or write this one; rank 0 only.

        An earlier plan holds: its batch size and its prompts (some templates print the date) shaped the
        samples that are there. Samples of another engine, model or other options are thrown away, which is said.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        file = self.path / PLAN
        try:
            earlier = read_sealed(file)
            if all(earlier[key] == plan[key] for key in ("engine", "samples_key")):
                return earlier
            _LOG.warning("%s is of another engine, model or other options: it is thrown away.", self.path)
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError) as error:
            _LOG.warning("%s is damaged (%s): what was sampled so far is thrown away.", file, error)
        for part in self._parts():
            part.unlink()
        write_atomic(file, sealed_text(plan))
        sync_folder(self.path)
        return plan

    def open_part(self, rank: int) -> IO[bytes]:
        """Open a rank's own part for appending; a line that was cut is cut off first."""
        file = (self.path / f"part-{rank}.jsonl").open("ab+")
        file.seek(0)
        whole = sum(len(line) for line in file if line.endswith(b"\n"))
        file.truncate(whole)
        file.seek(0, os.SEEK_END)
        return file

    def batches(self) -> Iterator[Batch]:
        """Yield every finished batch, in no order; say which are damaged and will be sampled again."""
        for part in self._parts():
            with part.open("rb") as lines:
                for number, line in enumerate(lines, 1):
                    batch = parse_line(line)
                    if batch is not None:
                        yield batch
                    elif line.endswith(b"\n"):
                        _LOG.warning("%s, line %d is not as it was written: sampled again.", part, number)

    def _parts(self) -> list[Path]:
        return sorted(self.path.glob("part-*.jsonl"))

    def publish(self, num_batches: int, meta: dict[str, Any]) -> dict[str, Any]:
        """Merge the first batches in their order, drop duplicates, put them in place; rank 0 only.

        Returns:
            The meta, with what the merge found, as it is in the store.
        """
        done = self.path / "done"
        shutil.rmtree(done, ignore_errors=True)
        done.mkdir()
        examples: dict[str, list[dict[str, Any]]] = {}
        with (done / SAMPLES).open("wb") as stream:
            for row, fault in self._merged(num_batches):
                if fault is None:
                    stream.write((json.dumps(row, ensure_ascii=False) + "\n").encode(errors="replace"))
                elif len(examples.setdefault(fault, [])) < NUM_EXAMPLES:
                    examples[fault].append(row)
            size = stream.tell()
        whole = {"bytes": size, "sha256": file_digest(done / SAMPLES)}
        meta = meta | whole | {"dropped_examples": dict(sorted(examples.items()))}
        (done / META).write_text(sealed_text(meta), encoding="utf-8")
        put_in_place(done, self.target, keeps=_refuse_content)
        self.remove()
        return meta

    def remove(self) -> None:
        """Delete what is left of the work once the store is in its place; rank 0 only."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _merged(self, num_batches: int) -> Iterator[tuple[dict[str, Any], str | None]]:
        """Yield rows in batch order with why each is dropped; one batch in memory at a time."""
        places: dict[int, tuple[Path, int]] = {}
        for part in self._parts():
            at = 0
            with part.open("rb") as lines:
                for line in lines:
                    found = parse_line(line)
                    if found is not None:
                        places.setdefault(found.number, (part, at))
                    at += len(line)
        seen: set[str] = set()
        with contextlib.ExitStack() as stack:
            files = {part: stack.enter_context(part.open("rb")) for part in self._parts()}
            for number in range(num_batches):
                if number not in places:
                    raise DataError(
                        f"`data.cache_dir` must be a folder that all nodes share, but {self.path} lacks batch "
                        f"{number} that another rank wrote. Set data.cache_dir."
                    )
                part, at = places[number]
                files[part].seek(at)
                batch = parse_line(files[part].readline())
                assert batch is not None, "it was whole a moment ago"
                for row, outcome in zip(batch.rows, batch.outcomes, strict=True):
                    fault = outcome.fault
                    if fault is None and outcome.fingerprint in seen:
                        fault = DUPLICATE
                    seen.add(outcome.fingerprint) if fault is None else None
                    yield row, fault
