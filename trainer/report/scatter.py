"""The objective of a sweep against one of its parameters, a mark a point."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trainer.report.element import Html, element
from trainer.report.figure import BOTTOM, CHAR_WIDTH, HEIGHT, TOP, WIDTH
from trainer.report.number import short, tick_labels, ticks
from trainer.report.scale import Scale, make_scale

INSET = 14.0
"""Room between the plot's edges and the outer marks."""
MAX_TICK_CHARS = 14


@dataclass(frozen=True, slots=True)
class Mark:
    """One point: its value as it stands in an override, and its objective."""

    name: str
    value: str
    objective: float


def scatter(
    title: str, parameter: str, objective: str, marks: Sequence[Mark], best: str | None, is_joined: bool
) -> Html:
    """Return the figure; `best` names the mark that stands out, `is_joined` draws a line through all in order."""
    scale = make_scale([mark.value for mark in marks])
    y_ticks = ticks(min(mark.objective for mark in marks), max(mark.objective for mark in marks), 5)
    left = 12 + CHAR_WIDTH * max(map(len, tick_labels(y_ticks)))
    right = WIDTH - 12

    def x(value: str) -> float:
        return _across(scale.places[value], left, right)

    def y(value: float) -> float:
        share = (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)

    ordered = sorted(marks, key=lambda mark: scale.places[mark.value])
    path = "M" + "L".join(f"{x(mark.value):.1f},{y(mark.objective):.1f}" for mark in ordered)
    drawn = [element("g", element("path", d=path), class_="s1")] if is_joined and len(marks) > 1 else []
    for mark in sorted(ordered, key=lambda mark: mark.name == best):
        hover = element("title", f"{mark.name}: {short(mark.objective)} at {mark.value}")
        is_best = mark.name == best
        circle = element(
            "circle", hover, cx=x(mark.value), cy=y(mark.objective), r=5 if is_best else 3.5, class_="mark"
        )
        drawn.append(element("g", circle, class_="s2" if is_best else "s1"))
    words = "; ".join(f"{short(mark.objective)} at {mark.value}" for mark in ordered)
    described = f"{title}. {words}."
    return element(
        "figure",
        element("figcaption", element("b", title)),
        element(
            "svg",
            element("title", described),
            *_grid(y_ticks, y, left, right, objective),
            *_floor(scale, left, right, parameter),
            *drawn,
            viewbox=f"0 0 {WIDTH:.0f} {HEIGHT:.0f}",
            role="img",
            aria_label=described,
        ),
    )


def _across(place: float, left: float, right: float) -> float:
    return left + INSET + place * (right - left - 2 * INSET)


def _grid(
    values: list[float], y: Callable[[float], float], left: float, right: float, unit: str
) -> list[Html]:
    parts = [element("text", unit, x=2, y=12, class_="unit")]
    for value, label in zip(values, tick_labels(values), strict=True):
        parts.append(element("line", x1=left, x2=right, y1=y(value), y2=y(value), class_="grid"))
        parts.append(element("text", label, x=left - 6, y=y(value) + 4, text_anchor="end"))
    return parts


def _floor(scale: Scale, left: float, right: float, parameter: str) -> list[Html]:
    """Return the horizontal axis; labels that would meet are left out every other one."""
    floor = HEIGHT - BOTTOM
    parts = [element("line", x1=left, x2=right, y1=floor, y2=floor, class_="axis")]
    labels = [
        text if len(text) <= MAX_TICK_CHARS else text[: MAX_TICK_CHARS - 1] + "\u2026"
        for _, text in scale.ticks
    ]
    room = (right - left - 2 * INSET) / max(len(labels) - 1, 1)
    stride = -(-int(CHAR_WIDTH * max(map(len, labels)) + 6) // max(int(room), 1))
    for number, ((place, _), label) in enumerate(zip(scale.ticks, labels, strict=True)):
        at = _across(place, left, right)
        parts.append(element("line", x1=at, x2=at, y1=floor, y2=floor + 4, class_="axis"))
        if number % stride == 0:
            parts.append(element("text", label, x=at, y=floor + 16, text_anchor="middle"))
    name = f"{parameter} (log)" if scale.is_log else parameter
    middle = (left + right) / 2
    parts.append(element("text", name, x=middle, y=HEIGHT - 6, text_anchor="middle", class_="unit"))
    return parts
