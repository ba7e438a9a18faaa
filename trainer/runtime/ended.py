"""How an attempt ended, left in its folder of logs: a run may end before its ledger has a line."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trainer.config.fence import check_publish
from trainer.config.snapshot import write_atomic
from trainer.errors import CheckpointError, Exit, RankLost, TrainerError
from trainer.runtime.log import attempt_dir, log_dir

FILE = "ended.json"


@dataclass(frozen=True, slots=True)
class End:
    """How an attempt ended."""

    code: int
    """The exit code, as shells tell it."""
    sentence: str
    """Why; empty where nobody could say it."""
    time: float
    """Seconds since 1970."""


@contextlib.contextmanager
def end_noted(run_dir: Path, is_first: bool) -> Iterator[None]:
    """Note why the block ends where an error ends it.

    Ranks:
        Every rank of a training; the first holds the run directory.
    """
    try:
        yield
    except TrainerError as error:
        _note_here(run_dir, is_first, Exit.mendable, f"Error: {error}")
        raise
    except RankLost as error:
        _note_here(run_dir, is_first, Exit.died, f"Error: {error}")
        raise
    except Exception as error:
        _note_here(run_dir, is_first, Exit.died, f"{type(error).__name__}: {error}")
        raise


def note_end(folder: Path, code: int, sentence: str) -> None:
    """Leave how an attempt ended. Who is the first to know is right, but for the code of ranks that were killed.

    A rank that lost another tells why, and ends with 1; the command ends as the one that was killed.
    """
    told = read_end(folder)
    if told is not None and told.code == Exit.died and code > 128:
        with contextlib.suppress(OSError, CheckpointError):
            write_atomic(
                folder / FILE, json.dumps({"code": int(code), "sentence": told.sentence, "time": told.time})
            )
        return
    end = {"code": int(code), "sentence": sentence, "time": time.time()}
    # It tells of an error, and must not be one: a disk may be full, the directory another's by now.
    with contextlib.suppress(OSError, CheckpointError):
        check_publish(folder / FILE)
        with (folder / FILE).open("x", encoding="utf-8") as file:
            file.write(json.dumps(end) + "\n")


def read_end(folder: Path) -> End | None:
    """Return how an attempt ended; None where that was not left, or cannot be read."""
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return End(int(found["code"]), str(found["sentence"]), float(found["time"]))
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def _note_here(run_dir: Path, is_first: bool, code: int, sentence: str) -> None:
    """Leave the end of the attempt of this rank; the first makes a folder where the ranks had not met yet."""
    folder = log_dir()
    if folder is None and is_first:
        with contextlib.suppress(OSError):
            folder = attempt_dir(run_dir)
    if folder is not None:
        note_end(folder, code, sentence)
