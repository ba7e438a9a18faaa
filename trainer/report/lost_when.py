"""Kinds of text that nobody named through training: the rise of each over the base, and when it was lost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.config.metric import PROBE, PROBE_HIGH, PROBE_LOW
from trainer.evaluate.compare import SAME_NATS, side
from trainer.metrics.tracker import by_source
from trainer.report.element import Child, Html, table
from trainer.report.figure import line_chart
from trainer.report.number import count, decimals_for, signed
from trainer.report.record import RunRecord
from trainer.report.section import figures, paragraph, section
from trainer.report.series import Series

MOST_DRAWN = 6
"""Kinds that are drawn: those that lost most at any evaluation. All stand in the table."""
MIN_SPAN_NATS = 0.1
LIKELY_ONE = 10
"""Of so many intervals of 95 % one is likely enough wrong (40 %) to be warned of."""


@dataclass(frozen=True, slots=True)
class KindPoint:
    """What one evaluation said of a kind, in nats a token over the base; without an interval the ends are None."""

    step: int
    rise: float
    low: float | None
    high: float | None

    @property
    def side(self) -> int:
        """Return 1 where it was lost, -1 where it was gained, else 0, as `compare.side` tells."""
        return side(self.low, self.high)


def lost_when(record: RunRecord) -> Html | None:
    """Return the section; None where probes were read at the ends of the run alone."""
    kinds = {
        name: points for name in record.metrics.names(f"{PROBE}/") if (points := kind_points(record, name))
    }
    if not kinds:
        return None
    order = sorted(kinds, key=lambda name: -max(one.rise for one in kinds[name]))
    drawn = [_figure(name, kinds[name]) for name in order[:MOST_DRAWN]]
    num_steps = len({one.step for points in kinds.values() for one in points})
    more = f" Drawn are the {MOST_DRAWN} that lost most at any time." if len(order) > MOST_DRAWN else ""
    tells = sum(points[-1].low is not None for points in kinds.values())
    chance = (
        f" Of {count(tells)} kinds that nothing changed one may well be outside of its interval by chance at each "
        "evaluation."
        if tells >= LIKELY_ONE
        else ""
    )
    return section(
        "lost-when",
        "When kinds of text were lost",
        paragraph(
            f"The rise of the loss over the base's, at {count(num_steps)} evaluations of texts that nobody named. A "
            "bar is the 95 % interval (its wider half on both sides); lost or gained is what "
            f"leaves out 0 and is not all within {SAME_NATS:g} nats." + chance + more
        ),
        figures(*drawn),
        table(
            ["Kind", "Lost or gained", "Most lost, nats", "At the end, nats", "95 % interval"],
            [_row(name, kinds[name]) for name in order],
            "Kinds of text through training",
            num_text_columns=2,
        ),
    )


def kind_points(record: RunRecord, name: str) -> list[KindPoint]:
    """Return what evaluations said of a kind, in the order of steps; of a step that was taken twice the later."""
    series = {
        key: record.metrics.series(by_source(key, name)).points for key in (PROBE, PROBE_LOW, PROBE_HIGH)
    }
    rises, low, high = (dict(points) for points in series.values())
    return [KindPoint(round(step), rises[step], low.get(step), high.get(step)) for step in sorted(rises)]


def when_in_words(points: Sequence[KindPoint]) -> str:
    """Say since which step a kind has been lost or gained, or when it was and is no more."""
    if all(one.low is None for one in points):
        return "not known: too few documents for an interval"
    words = {1: "lost", -1: "gained"}
    now = points[-1].side
    if now:
        since = next(
            number for number in range(len(points), -1, -1) if number == 0 or points[number - 1].side != now
        )
        before = [one for one in points[:since] if one.side]
        first = f", {words[before[0].side]} first at step {count(before[0].step)}" if before else ""
        return f"{words[now]} since step {count(points[since].step)}{first}"
    outside = [one for one in points if one.side]
    if not outside:
        return "no change seen at any evaluation"
    last = outside[-1]
    if outside[0] is last:
        return f"{words[last.side]} at step {count(last.step)} alone"
    return f"{words[outside[0].side]} at step {count(outside[0].step)}, back after step {count(last.step)}"


def _figure(name: str, points: Sequence[KindPoint]) -> Html:
    halves = [
        0.0 if one.low is None or one.high is None else max(one.high - one.rise, one.rise - one.low)
        for one in points
    ]
    begin = () if points[0].step == 0 else ((0.0, 0.0),)
    line = Series(
        name,
        (*begin, *((float(one.step), one.rise) for one in points)),
        spreads=(*(0.0 for _ in begin), *halves),
    )
    return line_chart(
        name,
        "optimizer step",
        "nats per token",
        [line],
        ("base", 0.0),
        min_span=MIN_SPAN_NATS,
        note=when_in_words(points),
    )


def _row(name: str, points: Sequence[KindPoint]) -> list[Child]:
    last, most = points[-1], max(points, key=lambda one: one.rise)
    decimals = decimals_for(last.low, last.high)
    interval = (
        "none"
        if last.low is None or last.high is None
        else f"{signed(last.low, decimals)} to {signed(last.high, decimals)}"
    )
    worst = (
        f"{signed(most.rise, decimals)} (step {count(most.step)})"
        if most.rise > 0 and math.isfinite(most.rise)
        else "\u2013"
    )
    return [name, when_in_words(points), worst, signed(last.rise, decimals), interval]
