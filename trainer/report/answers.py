"""Answers: what the tuned model says to fixed prompts, beside what its base said."""

from __future__ import annotations

from typing import Any

from trainer.report.element import Child, Html, element, table
from trainer.report.number import count
from trainer.report.record import RunRecord
from trainer.report.section import paragraph, section

CUT = " [...]"
NO_BASE = "not recorded"


def answers(record: RunRecord) -> Html | None:
    """Return a row a prompt: base and newest answer; None where none was answered."""
    by_step: dict[int, dict[int, dict[str, Any]]] = {}
    for row in record.samples:
        by_step.setdefault(row["step"], {})[row["number"]] = row
    if not by_step:
        return None
    last = max(by_step)
    base = by_step.get(0, {})
    has_expected = any(row["expected"] for row in by_step[last].values())
    header = ["Prompt", "From", "Base", *([f"Step {count(last)}"] if last else [])]
    header += ["Held-out text"] if has_expected else []
    rows: list[list[Child]] = []
    for number, row in sorted(by_step[last].items()):
        cells: list[Child] = [_text(row["prompt"]), row["origin"], _answer(base.get(number))]
        cells += [_answer(row)] if last else []
        cells += [_text(row["expected"])] if has_expected else []
        rows.append(cells)
    earlier = ", ".join(count(step) for step in sorted(by_step) if step not in (0, last))
    more = f" samples.jsonl has those of steps {earlier} as well." if earlier else ""
    return section(
        "answers",
        "Answers",
        paragraph(
            f"The most likely token each time, so the same model always says the same; {CUT.strip()} is where "
            f"evaluate.during.samples.max_new_tokens cut an answer.{more}"
        ),
        table(header, rows, "Answers of base and tuned model", num_text_columns=len(header)),
    )


def _answer(row: dict[str, Any] | None) -> Html:
    if row is None:
        return _text(NO_BASE)
    return _text(row["answer"] + ("" if row["has_ended"] else CUT))


def _text(text: str) -> Html:
    return element("code", text, class_="spoken")
