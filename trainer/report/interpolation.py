"""Interpolation with the base: held-out loss over alpha, where interpolation.json is there."""

from __future__ import annotations

import json
from typing import Any

from trainer.errors import TrainerError
from trainer.report.element import Html, table
from trainer.report.figure import line_chart
from trainer.report.number import fixed
from trainer.report.record import RunRecord
from trainer.report.section import figures, paragraph, section
from trainer.report.series import Series

FILE_NAME = "interpolation.json"
MIN_SPAN_NATS = 0.1


def interpolation(record: RunRecord) -> Html | None:
    """Return a curve a set and the table; None where nothing was interpolated."""
    path = record.run_dir / FILE_NAME
    if not path.exists():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        points = [(float(p["alpha"]), {k: float(v) for k, v in p["losses"].items()}) for p in found["points"]]
        apart = [{k: float(v) for k, v in p.get("kl", {}).items()} for p in found["points"]]
        has_general = any(p["general_nats"] is not None for p in found["points"])
        suggested = None if found["suggested_alpha"] is None else float(found["suggested_alpha"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrainerError(f"{path} must be readable, but is damaged: {error!r}. Delete it.") from error
    names = list(points[0][1]) if points else []
    drawn = [
        line_chart(
            name,
            "alpha: 0 is the base, 1 the tuned model",
            "nats per token",
            [Series(name, tuple((alpha, losses[name]) for alpha, losses in points))],
            min_span=MIN_SPAN_NATS,
        )
        for name in names
    ]
    prompts = list(apart[0]) if apart else []
    drawn += [
        line_chart(
            f"KL to the base on {name}",
            "alpha: 0 is the base, 1 the tuned model",
            "nats per token",
            [Series(name, tuple((alpha, kl[name]) for (alpha, _), kl in zip(points, apart, strict=True)))],
            min_span=MIN_SPAN_NATS,
        )
        for name in prompts
    ]
    rows = [
        [f"{alpha:g}", *(fixed(losses[name], 4) for name in names), *(fixed(kl[name], 4) for name in prompts)]
        for (alpha, losses), kl in zip(points, apart, strict=True)
    ]
    words = (
        f"Weights base + alpha (tuned - base). {rule_sentence(suggested, has_general)} "
        "Nothing but this file was written."
    )
    caption = "Held-out loss in nats per token by alpha"
    return section(
        "interpolation",
        "Between the base and the tuned model",
        paragraph(words),
        figures(*drawn),
        table(["Alpha", *names, *(f"KL {name}" for name in prompts)], [list(row) for row in rows], caption),
    )


def rule_sentence(suggested: float | None, has_general: bool) -> str:
    """Return which alpha is suggested and by which rule.

    Args:
        suggested: None where no mixture is better than the base.
        has_general: Whether a held-out set that is no target was measured.
    """
    if suggested is None:
        return "No alpha above 0 is suggested: the base is as good on the target sets, so there is nothing to write."
    if has_general:
        return (
            f"Suggested: alpha {suggested:g}, the least loss on the other sets among those whose target loss is within "
            "1 % of the best, and within a tenth of what lies between the best and the worst."
        )
    return (
        f"Suggested: alpha {suggested:g}, the least target loss. No set but the target's was measured, so what is "
        "forgotten is not weighed: give a source with role=replay or role=probe."
    )
