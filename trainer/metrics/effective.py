"""How much of a run's time went into steps that stayed: the effective training time ratio (ETTR).

Between the first start and the last sign of life lie loading, proofs, evaluations, saves, steps that a crash threw
away, and waiting in a queue. What is left are the steps of the run as it stands.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.metrics.jsonl import has_numbers, read, read_events


@dataclass(frozen=True, slots=True)
class Effective:
    """The time of a run, by its own records."""

    num_starts: int
    lost_steps: int
    """Steps that were taken again, after another start or because the run went back before a spike."""
    skipped_steps: int
    """Steps of the run as it stands that moved nothing: not finite, refused as a spike, or their data passed over."""
    productive_s: float
    """Of the steps that stayed."""
    wall_s: float
    """From the first start to the last record, queues in between included."""

    @property
    def ratio(self) -> float | None:
        """Return the share of the time that went into steps that stayed; None before the first."""
        return (
            min(self.productive_s / self.wall_s, 1.0) if self.wall_s > 0 and self.productive_s > 0 else None
        )


def effective(run_dir: Path) -> Effective:
    """Read it from ledger.jsonl, metrics.jsonl and the lines that resumes have moved aside.

    What a damaged line cannot tell is left out.
    """
    events = read_events(run_dir / "ledger.jsonl")
    rows = [row for row in read(run_dir / "metrics.jsonl") if has_numbers(row, "step", "time", "step_time_s")]
    aside = [row for path in sorted(run_dir.glob("abandoned-*/metrics.jsonl")) for row in read(path)]
    aside = [row for row in aside if has_numbers(row, "step", "time")]
    starts = [event for event in events if event["event"] == "started"]
    turns = [event for event in events if event["event"] in ("started", "went_back")]
    times = [float(row["time"]) for row in [*events, *rows]]
    return Effective(
        num_starts=len(starts),
        lost_steps=sum(_lost(turns, [*events, *aside])),
        skipped_steps=_num_skipped(events),
        productive_s=sum(_step_times(rows)),
        wall_s=max(times) - min(times) if times else 0.0,
    )


def _num_skipped(events: Sequence[Mapping[str, Any]]) -> int:
    """Return how many steps were skipped, without those that were taken again; a step that comes twice counts once."""
    skipped: set[int] = set()
    for event in events:
        step = int(event["step"])
        match event["event"]:
            case "started" | "went_back":
                skipped = {one for one in skipped if one <= step}
            case "skipped":
                skipped.add(step)
            case "spike" if event.get("is_refused"):
                skipped.add(step)
            case "passed_over":  # told before the step
                skipped.add(step + 1)
    return len(skipped)


def _step_times(rows: Sequence[Mapping[str, Any]]) -> Iterator[float]:
    """Yield seconds of the steps that each logged line stands for: its own, and those since the line before."""
    before = 0
    for row in rows:
        yield float(row["step_time_s"]) * max(int(row["step"]) - before, 0)
        before = int(row["step"])


def _lost(turns: Sequence[Mapping[str, Any]], records: Sequence[Mapping[str, Any]]) -> Iterator[int]:
    """Yield for every turn after the first how far the run had come beyond it before, as far as that was recorded.

    Args:
        turns: Starts, and returns to an earlier step within one.
    """
    for before, now in itertools.pairwise(turns):
        within = [int(record["step"]) for record in records if before["time"] <= record["time"] < now["time"]]
        yield max(max(within, default=0) - int(now["step"]), 0)
