"""How much of a run's time went into steps that stayed: the effective training time ratio (ETTR).

Between the first start and the last sign of life lie loading, proofs, evaluations, saves, steps that a crash threw
away, and waiting in a queue. What is left are the steps of the run as it stands: of one that died, those it saved. The
time for which a run was over before somebody started it again is not its time.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.metrics.jsonl import has_numbers, read, read_events
from trainer.runtime.lease import is_held

OVER = ("finished", "early_stop")
"""Reasons of an end after which nothing is left to be trained."""


@dataclass(frozen=True, slots=True)
class Effective:
    """The time of a run, by its own records."""

    num_starts: int
    lost_steps: int
    """Steps that were thrown away: after what was saved when an attempt died, or because the run went back before a
    spike. They are taken again, or will be when the run goes on."""
    skipped_steps: int
    """Steps of the run as it stands that moved nothing: not finite, refused as a spike, or their data passed over."""
    productive_s: float
    """Of the steps that stayed."""
    wall_s: float
    """From the first start to the last record, queues in between included, without the time for which it was over."""

    @property
    def ratio(self) -> float | None:
        """Return the share of the time that went into steps that stayed; None before the first step."""
        has_stepped = self.productive_s > 0 or self.lost_steps > 0
        return min(self.productive_s / self.wall_s, 1.0) if self.wall_s > 0 and has_stepped else None


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
    kept = _kept(run_dir, events)
    if kept is not None:
        turns.append({"step": kept, "time": math.inf})
    return Effective(
        num_starts=len(starts),
        lost_steps=sum(_lost(turns, [*events, *rows, *aside])),
        skipped_steps=_num_skipped(events),
        productive_s=sum(_step_times(rows, math.inf if kept is None else kept)),
        wall_s=max(times) - min(times) - sum(_over(events)) if times else 0.0,
    )


def _over(events: Sequence[Mapping[str, Any]]) -> Iterator[float]:
    """Yield the seconds between the end of an attempt with which the run was over and the start of the next."""
    for before, now in itertools.pairwise(events):
        has_ended = before["event"] == "concluded" or (
            before["event"] == "stopped" and before.get("reason") in OVER
        )
        if has_ended and now["event"] == "started":
            yield max(float(now["time"]) - float(before["time"]), 0.0)


def _kept(run_dir: Path, events: Sequence[Mapping[str, Any]]) -> int | None:
    """Return the step that a run which died goes on from; None where all of its steps stay: it ended, or is trained."""
    of_saves = [event for event in events if event["event"] in ("started", "saved", "went_back")]
    ends = [event for event in events if event["event"] in ("started", "stopped")]
    has_ended = bool(ends) and ends[-1].get("reason") in OVER
    return None if not of_saves or has_ended or is_held(run_dir) else int(of_saves[-1]["step"])


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


def _step_times(rows: Sequence[Mapping[str, Any]], kept: float) -> Iterator[float]:
    """Yield seconds of the steps up to `kept` that each logged line stands for: its own, and those since the last."""
    before = 0
    for row in rows:
        yield float(row["step_time_s"]) * max(min(int(row["step"]), kept) - before, 0)
        before = int(row["step"])


def _lost(turns: Sequence[Mapping[str, Any]], records: Sequence[Mapping[str, Any]]) -> Iterator[int]:
    """Yield for every turn after the first how far the run had come beyond it before, as far as that was recorded.

    Args:
        turns: Starts, and returns to an earlier step within one.
    """
    for before, now in itertools.pairwise(turns):
        within = [int(record["step"]) for record in records if before["time"] <= record["time"] < now["time"]]
        yield max(max(within, default=0) - int(now["step"]), 0)
