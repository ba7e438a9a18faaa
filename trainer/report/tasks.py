"""Benchmark tasks: base against tuned, a row a metric."""

from __future__ import annotations

from trainer.evaluate.tasks.score import TaskComparison
from trainer.report.element import Child, Html, table
from trainer.report.number import count, fixed, signed
from trainer.report.record import RunRecord
from trainer.report.section import paragraph, section

NUM_DECIMALS = 4
ARROW = " \u2192 "
NOT_FINITE = "not finite"


def tasks(record: RunRecord) -> Html | None:
    """Return the scores of benchmark tasks; None where none was run."""
    found = record.forgetting.tasks if record.forgetting is not None else ()
    if not found:
        return None
    header = ["Task", "Metric", "Better", "Change", "Base \u2192 tuned", "Standard errors", "Documents"]
    return section(
        "tasks",
        "Benchmark tasks",
        paragraph(
            "Scores of lm-eval, measured by this trainer on the base and on the tuned model. The standard errors are "
            "those of each score alone; both models answered the same questions, so the change is known better."
        ),
        table(
            header, [_row(one) for one in found], "Base and tuned model by benchmark task", num_text_columns=3
        ),
    )


def _row(one: TaskComparison) -> list[Child]:
    better = {True: "higher", False: "lower", None: "unknown"}[one.higher_is_better]
    return [
        one.task,
        one.metric,
        better,
        NOT_FINITE if one.change is None else signed(one.change, NUM_DECIMALS),
        f"{_number(one.base, NOT_FINITE)}{ARROW}{_number(one.tuned, NOT_FINITE)}",
        f"{_number(one.base_stderr, 'none')}, {_number(one.tuned_stderr, 'none')}",
        count(one.num_documents),
    ]


def _number(value: float | None, otherwise: str) -> str:
    return otherwise if value is None else fixed(value, NUM_DECIMALS)
