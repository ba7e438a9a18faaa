"""What a benchmark task said of one model, and of the base and the tuned one side by side. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trainer.evaluate.wilson import wilson_interval


@dataclass(frozen=True, slots=True)
class TaskScore:
    """One metric of one task, measured on one model."""

    task: str
    metric: str
    """As lm-eval names it: `acc`, or `exact_match,strict-match` where answers are filtered."""
    value: float | None
    """None where the metric is not finite."""
    stderr: float | None
    """Standard error over documents; None where lm-eval gives none."""
    higher_is_better: bool | None
    num_documents: int
    low: float | None = None
    high: float | None = None
    """Ends of a 95 % interval of a share (Wilson); None where lm-eval gives a standard error alone."""

    def to_plain(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class TaskComparison:
    """One metric of one task, measured on the base and on the tuned model; `change` is tuned minus base."""

    task: str
    metric: str
    base: float | None
    tuned: float | None
    change: float | None
    base_stderr: float | None
    tuned_stderr: float | None
    higher_is_better: bool | None
    num_documents: int
    base_low: float | None = None
    base_high: float | None = None
    tuned_low: float | None = None
    tuned_high: float | None = None
    """95 % intervals of shares; None where there are standard errors alone."""

    def to_plain(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return asdict(self)


def share_score(task: str, metric: str, hits: Sequence[bool], higher_is_better: bool) -> TaskScore:
    """Return the score of a share of independent cases, with its standard error and its interval by Wilson.

    Args:
        hits: Of every case, at least one, whether it counts.
    """
    value = sum(hits) / len(hits)
    low, high = wilson_interval(sum(hits), len(hits))
    stderr = math.sqrt(value * (1 - value) / len(hits))
    return TaskScore(task, metric, value, stderr, higher_is_better, len(hits), low, high)


def compare_scores(base: Sequence[TaskScore], tuned: Sequence[TaskScore]) -> list[TaskComparison]:
    """Pair the scores of the same metric of the same task, in the order of the tuned ones."""
    known = {(score.task, score.metric): score for score in base}
    return [
        TaskComparison(
            task=score.task,
            metric=score.metric,
            base=before.value,
            tuned=score.value,
            change=None if score.value is None or before.value is None else score.value - before.value,
            base_stderr=before.stderr,
            tuned_stderr=score.stderr,
            higher_is_better=score.higher_is_better,
            num_documents=score.num_documents,
            base_low=before.low,
            base_high=before.high,
            tuned_low=score.low,
            tuned_high=score.high,
        )
        for score in tuned
        if (before := known.get((score.task, score.metric))) is not None
    ]


def scores_of(results: dict[str, Any]) -> list[TaskScore]:
    """Return the scores in what lm-eval's evaluate() returned, tasks and groups alike.

    It keeps `acc,none` and `acc_stderr,none` side by side, beside words such as `alias`.
    """
    found = []
    for task, entries in results["results"].items():
        for key, value in entries.items():
            name, comma, chosen_filter = key.partition(",")
            if not comma or name.endswith("_stderr"):
                continue
            is_better = results["higher_is_better"].get(task, {}).get(name)
            found.append(
                TaskScore(
                    task=task,
                    metric=name if chosen_filter == "none" else key,
                    value=_finite(value),
                    stderr=_finite(entries.get(f"{name}_stderr,{chosen_filter}")),
                    higher_is_better=is_better if isinstance(is_better, bool) else None,
                    num_documents=_count(entries.get("sample_len")),
                )
            )
    return found


def _count(value: Any) -> int:
    return int(value) if isinstance(value, int | float) else 0


def _finite(value: Any) -> float | None:
    """Return a number that JSON has; lm-eval writes `N/A` where it has none."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
