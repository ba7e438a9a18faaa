"""Dot-and-interval plot of the changes of all held-out sets, as SVG."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.evaluate.compare import SetComparison
from trainer.report.element import Html, drawing, element
from trainer.report.number import decimals_for, signed, tick_labels, ticks
from trainer.report.verdict import change_with_interval

WIDTH = 400.0
LEFT, RIGHT = 14.0, WIDTH - 14.0
ROW_HEIGHT = 42.0
TOP = 8.0
MAX_NAME_CHARS = 22
SHAPES = "Circle: target; square: replay; diamond: probe."
MARK_RADIUS = 4.5


def interval_plot(sets: Sequence[SetComparison]) -> Html:
    """Return a figure with a row a set: the dot is the change, the bar its interval."""
    ends = [end for one in sets for end in (one.change_low, one.change_nats, one.change_high)]
    known = [end for end in ends if end is not None]
    edges = ticks(min(0.0, *known), max(0.0, *known), 6)

    def place(value: float) -> float:
        return LEFT + (value - edges[0]) / (edges[-1] - edges[0]) * (RIGHT - LEFT)

    floor = TOP + ROW_HEIGHT * len(sets)
    axis = []
    for value, label in zip(edges, tick_labels(edges), strict=True):
        x = place(value)
        axis.append(element("line", x1=x, x2=x, y1=TOP, y2=floor, class_="grid" if value else "zero"))
        axis.append(element("text", label, x=x, y=floor + 16, text_anchor="middle"))
    unit = "change in nats per supervised token; left of 0 is better"
    axis.append(element("text", unit, x=WIDTH / 2, y=floor + 34, text_anchor="middle", class_="unit"))
    rows = []
    for number, one in enumerate(sets):
        y = TOP + ROW_HEIGHT * number
        rows.append(
            _row(
                one,
                y,
                place(one.change_nats),
                *(None if end is None else place(end) for end in (one.change_low, one.change_high)),
            )
        )
    title = "Change of held-out loss against the base model, with 95 % intervals"
    words = "; ".join(f"{one.name} {change_with_interval(one)}" for one in sets)
    return element(
        "figure",
        element("figcaption", element("b", title), element("span", SHAPES, class_="note")),
        drawing(f"{title}. {words}.", *axis, *rows, width=WIDTH, height=floor + 42),
        class_="wide",
    )


def _row(one: SetComparison, y: float, dot: float, low: float | None, high: float | None) -> Html:
    middle = y + 29
    name = one.name if len(one.name) <= MAX_NAME_CHARS else one.name[: MAX_NAME_CHARS - 1] + "\u2026"
    parts = [
        element("title", f"{one.name} ({one.role}): {change_with_interval(one)} nats"),
        element("rect", x=0, y=y - 1, width=WIDTH, height=20, class_="plate"),
        element("text", name, x=LEFT, y=y + 14, class_="name"),
        element("text", _value(one), x=RIGHT, y=y + 14, text_anchor="end"),
    ]
    if low is not None and high is not None:
        parts.append(element("line", x1=low, x2=high, y1=middle, y2=middle, class_="bar"))
        # Within the mark they would make a circle a square.
        ends = [x for x in (low, high) if abs(x - dot) > MARK_RADIUS]
        parts += [element("line", x1=x, x2=x, y1=middle - 4, y2=middle + 4, class_="bar") for x in ends]
    parts.append(_mark(one.role, dot, middle))
    return element("g", *parts, class_=f"role-{one.role}")


def _value(one: SetComparison) -> str:
    if one.change_low is None:
        return f"{signed(one.change_nats, decimals_for(None, None))} (no interval)"
    return change_with_interval(one)


def _mark(role: str, x: float, y: float) -> Html:
    """Return a circle for a target, a square for replay, a diamond for a probe."""
    if role == "target":
        return element("circle", cx=x, cy=y, r=MARK_RADIUS, class_="mark")
    turn = f"rotate(45 {x:.2f} {y:.2f})" if role == "probe" else None
    return element("rect", x=x - 4, y=y - 4, width=8, height=8, transform=turn, class_="mark")
