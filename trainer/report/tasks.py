"""Benchmark tasks: base against tuned, a row a metric; and a curve a metric through training."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.config.asked import BENIGN, HARMFUL, TOOL_CALLS
from trainer.config.many import many
from trainer.config.metric import STDERR, TASK
from trainer.evaluate.tasks.score import TaskComparison
from trainer.report.element import Child, Html, join, table
from trainer.report.figure import line_chart
from trainer.report.number import count, fixed, signed
from trainer.report.record import RunRecord
from trainer.report.section import figures, paragraph, section
from trainer.report.series import Series
from trainer.report.verdict import between

NUM_DECIMALS = 4
ARROW = " \u2192 "
NOT_FINITE = "not finite"
OURS = (TOOL_CALLS, HARMFUL, BENIGN)
ABOUT_OURS = (
    "Of tool calls and refusals, which this trainer asks and judges itself, 95 % intervals by Wilson stand there "
    "instead. Refusals are found by a list of phrases: one in other words counts as an answer."
)
INTERVAL = 1.96
"""Standard errors to either side of a score that hold the true one in 95 of 100 samples of documents."""


def tasks(record: RunRecord) -> Html | None:
    """Return the scores of benchmark tasks; None where none was run."""
    found = record.forgetting.tasks if record.forgetting is not None else ()
    drawn = [_curve(record, name) for name in record.metrics.names(TASK) if not name.endswith(STDERR)]
    if not found and not any(drawn):
        return None
    return section("tasks", "Benchmark tasks", _compared(found), _through_training(record, drawn))


def _compared(found: Sequence[TaskComparison]) -> Html | None:
    if not found:
        return None
    header = ["Task", "Metric", "Better", "Change", "Base \u2192 tuned", "Standard errors", "Documents"]
    asks_ours = any(one.task in OURS for one in found)
    return join(
        paragraph(
            "Scores of lm-eval, measured by this trainer on the base and on the tuned model. The standard errors are "
            "those of each score alone; both models answered the same questions, so the change is known better."
            + (f" {ABOUT_OURS}" if asks_ours else "")
        ),
        table(
            header, [_row(one) for one in found], "Base and tuned model by benchmark task", num_text_columns=3
        ),
    )


def _through_training(record: RunRecord, drawn: Sequence[Html | None]) -> Html | None:
    if not any(drawn):
        return None
    limit = record.setting("evaluate.during.limit")
    documents = f"the first {count(limit)} documents of each" if isinstance(limit, int) else "all documents"
    put_off = [event for event in record.events if event.get("event") == "put_off"]
    late = (
        ""
        if not put_off
        else f" They were put off {many(len(put_off), 'time')}: the ledger says when and why."
    )
    return join(
        paragraph(
            f"Through training, on {documents}. Bars are 95 % intervals of each score alone, 1.96 standard errors to "
            f"either side; the dashed line is the base.{late}"
        ),
        figures(*drawn),
    )


def _curve(record: RunRecord, name: str) -> Html | None:
    found = record.metrics.series(TASK + name, name)
    if not found.points:
        return None
    errors = dict(record.metrics.series(TASK + name + STDERR).points)
    halves = tuple(INTERVAL * errors.get(step, 0.0) for step, _ in found.points)
    task, _, metric = name.partition("/")
    base = ("base", found.points[0][1]) if found.points[0][0] == 0 else None
    line = Series(metric, found.points, found.num_left_out, halves)
    return line_chart(task, "optimizer step", metric, [line], base)


def _row(one: TaskComparison) -> list[Child]:
    better = {True: "higher", False: "lower", None: "unknown"}[one.higher_is_better]
    return [
        one.task,
        one.metric,
        better,
        NOT_FINITE if one.change is None else signed(one.change, NUM_DECIMALS),
        f"{_number(one.base, NOT_FINITE)}{ARROW}{_number(one.tuned, NOT_FINITE)}",
        _spread(one),
        count(one.num_documents),
    ]


def _spread(one: TaskComparison) -> str:
    """Return the intervals of both shares, or the standard errors where there are these alone."""
    if one.base_low is None or one.base_high is None or one.tuned_low is None or one.tuned_high is None:
        return f"{_number(one.base_stderr, 'none')}, {_number(one.tuned_stderr, 'none')}"
    base, tuned = (between(one.base_low, one.base_high, 3), between(one.tuned_low, one.tuned_high, 3))
    return f"{base}{ARROW}{tuned}"


def _number(value: float | None, otherwise: str) -> str:
    return otherwise if value is None else fixed(value, NUM_DECIMALS)
