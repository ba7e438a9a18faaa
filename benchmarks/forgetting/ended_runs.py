"""The runs of the forgetting experiment that ended: a line of JSON each, on the disk when a run is counted."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any


class EndedRuns:
    """The lines of runs that ended; one that was cut off in the middle of a write is dropped, and said."""

    def __init__(self, path: Path) -> None:
        """Read them."""
        self._path = path
        self._lock = threading.Lock()
        self.all: list[dict[str, Any]] = []
        for number, text in enumerate(
            path.read_text(encoding="utf-8").splitlines() if path.is_file() else ()
        ):
            try:
                self.all.append(json.loads(text))
            except ValueError:
                print(f"{path}:{number + 1} was cut off and is run again.", flush=True)
        if path.is_file():
            path.write_text("".join(json.dumps(line) + "\n" for line in self.all), encoding="utf-8")

    @property
    def keys(self) -> set[tuple[str, str, int]]:
        """Return which runs are there."""
        return {(line["shift"], line["arm"], line["seed"]) for line in self.all}

    def leave_others(self, overrides: dict[str, list[str]]) -> None:
        """Leave out runs of arms that are asked for with other words now."""
        changed = [
            line for line in self.all if line["overrides"] != overrides.get(line["arm"], line["overrides"])
        ]
        for arm in dict.fromkeys(line["arm"] for line in changed):
            print(f"{arm}: its words were changed, so that it is run again.", flush=True)
        self.all = [line for line in self.all if line not in changed]

    def add(self, line: dict[str, Any]) -> None:
        """Bring a line to the disk."""
        with self._lock, self._path.open("a", encoding="utf-8") as stream:
            self.all.append(line)
            stream.write(json.dumps(line) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
