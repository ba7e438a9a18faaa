"""What is left of a run, reckoned once: `status`, `verify` and the console tell the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.metrics.jsonl import has_numbers


def remaining_s(rows: Sequence[Mapping[str, Any]], step: int | None = None) -> float | None:
    """Return the seconds that are left by the newest line of metrics.jsonl that tells; None where none does.

    Args:
        step: From which the run goes on, where steps that were logged after it are taken again.
    """
    newest = next((row for row in reversed(rows) if has_numbers(row, "step", "eta_s")), None)
    if newest is None:
        return None
    num_again = 0 if step is None else int(newest["step"]) - step
    step_s = float(newest["step_time_s"]) if has_numbers(newest, "step_time_s") else 0.0
    return float(newest["eta_s"]) + num_again * step_s
