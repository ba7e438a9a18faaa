"""The page of a sweep: what its points are compared by, the figures, and a table, best first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trainer.report.document import document
from trainer.report.element import Child, Html, element, table
from trainer.report.number import count, short, shown
from trainer.report.parallel import Line, parallel_coordinates
from trainer.report.scatter import Mark, scatter
from trainer.report.section import definitions, figures, missing, paragraph, section


@dataclass(frozen=True, slots=True)
class SweepFacts:
    """What all points have in common."""

    name: str
    folder: str
    objective: str
    is_best_of_run: bool
    """The best value of each run counts, not its last."""
    less_is_better: bool


@dataclass(frozen=True, slots=True)
class PointRow:
    """One point."""

    name: str
    params: dict[str, str]
    objective: float | None
    """None where the run has not finished, or has logged none."""
    state: str
    step: int
    error: str
    """Why there is no objective; empty where there is one."""


def sweep_page(facts: SweepFacts, rows: Sequence[PointRow]) -> str:
    """Return the whole page."""
    title = f"Sweep: {facts.name}"
    done = [row for row in rows if row.objective is not None]
    sign = 1 if facts.less_is_better else -1
    ordered = sorted(rows, key=lambda row: (row.objective is None, sign * (row.objective or 0.0)))
    best = ordered[0] if done else None
    keys = list(rows[0].params) if rows else []
    varied = [key for key in keys if len({row.params[key] for row in rows}) > 1]
    return document(
        title,
        element("header", element("h1", title), paragraph(_verdict(facts, best), class_="verdict")),
        definitions(
            {
                "Objective": facts.objective
                + (", best of each run" if facts.is_best_of_run else ", last of each run"),
                "Better": "lower" if facts.less_is_better else "higher",
                "Points": count(len(rows)),
                "Finished": count(len(done)),
                "Directory": facts.folder,
            }
        ),
        _figures(facts, rows, done, varied, best),
        section("points", "Points", _table(facts, ordered, keys), *_errors(rows)),
    )


def _verdict(facts: SweepFacts, best: PointRow | None) -> str:
    if best is None:
        return "No point has finished with an objective."
    values = ", ".join(f"{key} = {shown(value)}" for key, value in best.params.items())
    return f"Best: {values}, with {facts.objective} {short(best.objective or 0.0)}."


def _figures(
    facts: SweepFacts,
    rows: Sequence[PointRow],
    done: Sequence[PointRow],
    varied: Sequence[str],
    best: PointRow | None,
) -> Html:
    heading = "Objective by parameter"
    if len(done) < 2 or not varied:
        return section(
            "figures", heading, missing("There is nothing to draw before two points have finished.")
        )
    drawn: list[Html] = []
    if len(varied) > 1:
        lines = [Line(row.name, tuple(row.params[key] for key in varied), row.objective) for row in rows]
        leaves = [key.rpartition(".")[2] for key in varied]
        names = leaves if len(set(leaves)) == len(leaves) else varied
        drawn.append(
            parallel_coordinates("All parameters", names, facts.objective, lines, facts.less_is_better)
        )
    for key in varied:
        marks = [Mark(row.name, row.params[key], row.objective) for row in done if row.objective is not None]
        title = f"{facts.objective} against {key}"
        drawn.append(
            scatter(title, key, facts.objective, marks, None if best is None else best.name, len(varied) == 1)
        )
    return section("figures", heading, figures(*drawn))


def _table(facts: SweepFacts, rows: Sequence[PointRow], keys: Sequence[str]) -> Html:
    cells: list[list[Child]] = [
        [
            row.name,
            row.state,
            *(shown(row.params[key]) for key in keys),
            "" if row.objective is None else short(row.objective),
            count(row.step),
        ]
        for row in rows
    ]
    header = ["Point", "State", *keys, facts.objective, "Steps"]
    return table(header, cells, "Points, best first", num_text_columns=2)


def _errors(rows: Sequence[PointRow]) -> list[Html]:
    """Say why points have no objective, and how to look closer."""
    failed = [row for row in rows if row.error]
    return [missing(f"{row.name}: {row.error}") for row in failed]
