"""What became of the points of a sweep, from the files of their runs: for the console, sweep.json and sweep.html."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from trainer.config.snapshot import write_atomic
from trainer.config.sweep import ObjectiveValue
from trainer.report.number import shown
from trainer.report.sweep import PointRow, SweepFacts, sweep_page
from trainer.runtime.say import say
from trainer.runtime.visible import visible

from .attempts import has_finished, last_job
from .points import Goal, Point, Record, write_record
from .slurm import job_states
from .status import DIED, RunStatus, run_status

PAGE = "sweep.html"
WITHOUT_END = {
    "submitted": "its job left the queue before it began",
    "begun": "it was ended before it could say why",
    DIED: "it was ended before it could say why",
}
"""What the state of a run means when it goes on no more."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One point."""

    point: Point
    status: RunStatus
    has_finished: bool
    measured: float | None
    """The objective as far as it was logged; of a run that goes on it may still change."""

    @property
    def name(self) -> str:
        """Return the name of the point."""
        return self.point.name

    @property
    def objective(self) -> float | None:
        """Return the objective of a run that has finished."""
        return self.measured if self.has_finished else None

    @property
    def error(self) -> str:
        """Return why there is no objective."""
        if self.has_finished:
            return "it has finished, but logged no finite value of sweep.objective"
        state = DIED if self.status.state.startswith(DIED) else self.status.state
        return self.status.last_error or WITHOUT_END.get(state, state)

    @property
    def trouble(self) -> str:
        """Return what a person should know of a point without an objective; empty while nothing has gone wrong."""
        has_trouble = self.has_finished or self.status.last_error is not None
        return self.error if self.objective is None and has_trouble else ""


def find_outcome(folder: Path, point: Point, goal: Goal, states: Mapping[int, str] | None = None) -> Outcome:
    """Return what the files of a point's run tell.

    Args:
        states: The queue, when it was asked already.
    """
    run_dir = folder / point.name
    return Outcome(point, run_status(run_dir, states), has_finished(run_dir), goal.measure(run_dir))


def find_outcomes(folder: Path, record: Record) -> list[Outcome]:
    """Return what became of all points; the queue is asked once."""
    jobs = [job for job in (last_job(folder / point.name) for point in record.points) if job is not None]
    states = job_states(jobs) or {}
    return [find_outcome(folder, point, record.goal, states) for point in record.points]


def best_of(outcomes: Sequence[Outcome], goal: Goal) -> Outcome | None:
    """Return the best of the points that have finished."""
    done = [one for one in outcomes if one.objective is not None]
    return min(done, key=lambda one: goal.sign * (one.objective or 0.0), default=None)


def remember(folder: Path, record: Record, outcomes: Sequence[Outcome]) -> None:
    """Write sweep.json."""
    best = best_of(outcomes, record.goal)
    found = [
        {
            "state": one.status.state,
            "step": one.status.step,
            "job": last_job(folder / one.name),
            "objective": one.objective,
            "error": None if one.objective is not None else one.status.last_error,
        }
        for one in outcomes
    ]
    write_record(folder, record, found, None if best is None else best.name)


def write_page(folder: Path, record: Record, outcomes: Sequence[Outcome]) -> Path:
    """Write sweep.html; return its path."""
    goal = record.goal
    rows = [
        PointRow(
            one.name,
            one.point.params,
            one.objective,
            one.status.state,
            one.status.step,
            one.trouble,
        )
        for one in outcomes
    ]
    facts = SweepFacts(
        record.name, str(folder), goal.objective, goal.value is ObjectiveValue.best, goal.sign == 1
    )
    path = folder / PAGE
    write_atomic(path, sweep_page(facts, rows))
    return path


def say_point(outcome: Outcome, goal: Goal, count: str) -> None:
    """Print how a point ended."""
    said = f"failed: {outcome.error}"
    if outcome.objective is not None:
        said = f"{outcome.status.state}, {goal.objective} {outcome.objective:.6g}"
    print(visible(f"{count} {outcome.name} {said}"), flush=True)


def say_end(folder: Path, record: Record, outcomes: Sequence[Outcome]) -> None:
    """Print the table of a sweep, best first, and where the figure is."""
    goal = record.goal
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    table = Table(box=None, pad_edge=False)
    keys = list(record.points[0].params) if record.points else []
    for heading in ("point", *keys, goal.objective, "state", "step"):
        table.add_column(
            heading, justify="left" if heading in ("point", "state") else "right", overflow="fold"
        )
    for one in sorted(outcomes, key=lambda one: _rank(one, goal)):
        objective = "" if one.objective is None else f"{one.objective:.6g}"
        values = [shown(one.point.params[key]) for key in keys]
        table.add_row(one.name.partition("_")[0], *values, objective, one.status.state, str(one.status.step))
    console.print(table)
    for one in outcomes:
        if one.trouble:
            say(console, f"{one.name}: {one.trouble}")
    best = best_of(outcomes, goal)
    if best is not None:
        print(f"Best: {folder / best.name}, {goal.objective} {best.objective:.6g}")


def _rank(outcome: Outcome, goal: Goal) -> tuple[bool, float]:
    value = outcome.objective
    return value is None, 0.0 if value is None else goal.sign * value
