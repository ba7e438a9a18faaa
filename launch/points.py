"""Points of a sweep: their names, and sweep.json, which remembers them and what they are compared by."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.config.metric import Direction
from trainer.config.snapshot import SWEEP_RECORD, write_atomic
from trainer.config.sweep import ObjectiveValue, SweepConfig
from trainer.errors import ConfigError
from trainer.metrics.jsonl import read

VERSION = 1
MAX_NAME = 96
_UNSAFE = re.compile(r"[^A-Za-z0-9.+-]+")


@dataclass(frozen=True, slots=True)
class Point:
    """One run of a sweep."""

    name: str
    """Folder below that of the sweep."""
    params: dict[str, str]
    """What the sweep goes over, as key and value of an override."""

    @property
    def words(self) -> list[str]:
        """Return its overrides."""
        return [f"{key}={value}" for key, value in self.params.items()]

    def hidden(self, line: str) -> str:
        """Return a line without the values that only this point has."""
        for key in self.params:
            line = re.sub(rf"(?<![\w.]){re.escape(key)}=\S+", f"{key}=...", line)
        return line


@dataclass(frozen=True, slots=True)
class Goal:
    """What points are compared by."""

    objective: str
    value: ObjectiveValue
    direction: Direction

    @classmethod
    def of(cls, config: SweepConfig) -> Goal:
        """Return that of a configuration."""
        return cls(config.objective, config.value, config.direction)

    @property
    def sign(self) -> int:
        """Return 1 when less is better, -1 when more is."""
        return 1 if self.direction is Direction.minimize else -1

    def measure(self, run_dir: Path) -> float | None:
        """Return the objective of a run; None while nothing finite was logged after step 0, the base model's."""
        rows = [row for row in read(run_dir / "metrics.jsonl") if row.get("step", 0) > 0]
        values = [row[self.objective] for row in rows if isinstance(row.get(self.objective), int | float)]
        if self.value is ObjectiveValue.best:
            finite = [float(value) for value in values if math.isfinite(value)]
            return min(finite, key=lambda value: self.sign * value, default=None)
        return float(values[-1]) if values and math.isfinite(values[-1]) else None


@dataclass(slots=True)
class Record:
    """What sweep.json says."""

    name: str
    goal: Goal
    points: list[Point] = field(default_factory=list)

    def find(self, params: dict[str, str]) -> Point | None:
        """Return the point of these values."""
        return next((point for point in self.points if point.params == params), None)


def read_record(folder: Path) -> Record | None:
    """Return the record of a sweep's directory; None where there is none.

    Raises:
        ConfigError: It cannot be understood.
    """
    path = folder / SWEEP_RECORD
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        goal = plain["goal"]
        return Record(
            plain["name"],
            Goal(goal["objective"], ObjectiveValue(goal["value"]), Direction(goal["direction"])),
            [Point(point["name"], dict(point["params"])) for point in plain["points"]],
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"{path} must be what a sweep wrote, but is not ({error}). Move it away; a grid finds the runs that have "
            "finished by the names of their folders."
        ) from error


def write_record(folder: Path, record: Record, found: Sequence[dict[str, Any]], best: str | None) -> None:
    """Write sweep.json whole or not at all.

    Args:
        found: What is known of each point beside its name and values.
        best: Name of the best point.
    """
    points = [
        {"name": point.name, "params": point.params} | more
        for point, more in zip(record.points, found, strict=True)
    ]
    goal = record.goal
    plain = {
        "version": VERSION,
        "name": record.name,
        "goal": {
            "objective": goal.objective,
            "value": goal.value.value,
            "direction": goal.direction.value,
        },
        "best": best,
        "points": points,
    }
    write_atomic(folder / SWEEP_RECORD, json.dumps(plain, indent=1) + "\n")


def point_name(number: int, params: dict[str, str]) -> str:
    """Return a folder's name that says which point it is: 003_lr-1e-05_ratio-0.01.

    No `=`, `,` or `:` stand in it, which Hydra, SLURM and containers would take for something else.
    """
    leaves = [key.rpartition(".")[2] for key in params]
    words = [
        f"{_safe(leaf if leaves.count(leaf) == 1 else key)}-{_safe(_short(value))}"
        for leaf, (key, value) in zip(leaves, params.items(), strict=True)
    ]
    return f"{number:03}_{'_'.join(words)}"[:MAX_NAME].rstrip("_-.")


def _short(value: str) -> str:
    text = value.strip("'\"")
    try:
        return f"{float(text):.4g}" if "." in text or "e" in text.lower() else text
    except ValueError:
        return text[-32:]


def _safe(text: str) -> str:
    return _UNSAFE.sub("-", text).strip("-") or "none"
