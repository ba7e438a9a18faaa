"""The end of a run or an evaluation on a terminal: what changed, and where the report is."""

from __future__ import annotations

from pathlib import Path

from trainer.evaluate.record import FILE_NAME, read_forgetting
from trainer.report.build import build_report
from trainer.report.verdict import no_interval, verdict

NATS = "(Nats a token: natural logarithms of probability. 0.1 less, and the right token is about 10 % more likely.)"


def announce(run_dir: Path) -> None:
    """Build the report and say in a sentence what changed; rank 0."""
    report = build_report(run_dir)
    found = read_forgetting(run_dir / FILE_NAME)
    if found is not None:
        print(f"Held-out loss against the base: {verdict(found.sets)}")
        print(NATS)
        why = no_interval({one.name: one.num_documents for one in found.sets})
        if why is not None:
            print(why)
        for one in found.tasks:
            print(f"Task {one.task}, {one.metric}: {_shown(one.base)} -> {_shown(one.tuned)}")
    print(f"Report: {report}", flush=True)


def _shown(score: float | None) -> str:
    return "not finite" if score is None else f"{score:.4f}"
