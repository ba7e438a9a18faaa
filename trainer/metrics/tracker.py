"""What a tracker is told and what it must do, and the bookmark that lets a resumed attempt go on in the same run."""

from __future__ import annotations

import json
import os
import secrets
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from trainer.config.fence import LOOK_S, check_publish

FOLDER = "trackers"
"""Bookmarks in the run directory, one file a tracker."""

Numbers = Mapping[str, float | int]


@dataclass(frozen=True, slots=True)
class RunCard:
    """What trackers are told of a run when it begins; names and configuration carry no secrets."""

    run_dir: Path
    name: str
    project: str
    group: str | None
    tags: tuple[str, ...]
    config: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Conclusion:
    """What is known when a run has been compared with its base."""

    step: int
    numbers: Numbers
    """Change of every held-out set, KL to the base, task scores, by the names of `by_source`."""
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    """The forgetting table, as a person reads it."""
    words: Mapping[str, str]
    """`verdict`, `gate` and `report`, where there is one."""

    @property
    def markdown(self) -> str:
        """Return the words and the table as one text."""
        lines = [f"{name}: {text}\n" for name, text in self.words.items()]
        cells = [self.columns, ("---",) * len(self.columns), *self.rows]
        table = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]
        return "\n".join([*lines, *(table if self.rows else [])])


class Tracker(Protocol):
    """One run in one tracker. Raises whatever its package raises.

    Ranks:
        Rank 0 only.
    """

    takes_back: ClassVar[bool]
    """A step that comes again takes the place of what was told of it and of later ones; else it only adds."""

    def write(self, step: int, numbers: Numbers) -> None:
        """Hand numbers of one step over, and return once they outlive this process as well as the tracker can."""

    def conclude(self, found: Conclusion) -> None:
        """Keep what the run came to."""

    def close(self, status: str | None) -> None:
        """Flush and leave the run; `status` says how it ended, None leaves what the tracker says of it."""


@dataclass(frozen=True, slots=True, order=True)
class Told:
    """The newest record that a tracker was told: its step, and which record of that step it is, from 1."""

    step: int = -1
    record: int = 0

    @staticmethod
    def through(step: int) -> Told:
        """Return the mark of a tracker that knows every record up to a step."""
        return Told(step + 1, 0)


@dataclass(slots=True)
class Bookmark:
    """How a tracker knows this run, and what it was told; a small file in the run directory."""

    path: Path
    run_id: str | None = None
    """Name that the tracker knows the run by; None before it began there."""
    mark: Told = field(default_factory=Told)

    @staticmethod
    def read(run_dir: Path, tracker: str) -> Bookmark:
        """Return the bookmark of a tracker; a new one where there is none, or none that can be read."""
        path = run_dir / FOLDER / f"{tracker}.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return Bookmark(path, str(found["run_id"]), Told(int(found["step"]), int(found["record"])))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return Bookmark(path)

    def begin(self, run_id: str) -> None:
        """Remember the run that began in the tracker; another one than before was told nothing."""
        if run_id != self.run_id:
            self.run_id, self.mark = run_id, Told()
        self.keep()

    def advance(self, mark: Told) -> None:
        """Remember what the tracker was told last."""
        self.mark = max(self.mark, mark)
        self.keep()

    def keep(self) -> None:
        """Write the file whole; not fsynced: after a power cut a few records may come twice.

        Raises:
            CheckpointError: Another run has taken the directory over.
        """
        check_publish(self.path, LOOK_S)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_suffix(".tmp")
        record = {"run_id": self.run_id, "step": self.mark.step, "record": self.mark.record}
        draft.write_text(json.dumps(record) + "\n", encoding="utf-8")
        os.replace(draft, self.path)


def new_run_id() -> str:
    """Return a fresh name for a run in a tracker that takes ours."""
    return "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(8))


def by_source(quantity: str, source: str) -> str:
    """Return the key of a figure of one source, set, prompt or task: in metrics.jsonl, and so in every tracker."""
    return f"{quantity}/{source}"
