"""The objective of a sweep against one of its parameters, a mark a point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trainer.report.element import Html, drawing, element
from trainer.report.figure import BOTTOM, CHAR_WIDTH, HEIGHT, TOP, WIDTH
from trainer.report.number import short, shown
from trainer.report.scale import Scale, chosen_scale, measured_scale

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
    scale = chosen_scale([mark.value for mark in marks])
    heights = measured_scale({mark.name: mark.objective for mark in marks})
    left = 12 + CHAR_WIDTH * max((len(label) for _, label in heights.ticks), default=0)
    right = WIDTH - 12

    def x(value: str) -> float:
        return _across(scale.places[value], left, right)

    ordered = sorted(marks, key=lambda mark: scale.places[mark.value])
    path = "M" + "L".join(f"{x(mark.value):.1f},{_up(heights.places[mark.name]):.1f}" for mark in ordered)
    drawn = [element("g", element("path", d=path), class_="s1")] if is_joined and len(marks) > 1 else []
    for mark in sorted(ordered, key=lambda mark: mark.name == best):
        hover = element("title", f"{mark.name}: {short(mark.objective)} at {shown(mark.value)}")
        is_best = mark.name == best
        circle = element(
            "circle",
            hover,
            cx=x(mark.value),
            cy=_up(heights.places[mark.name]),
            r=5 if is_best else 3.5,
            class_="mark",
        )
        drawn.append(element("g", circle, class_="s2" if is_best else "s1"))
    words = "; ".join(f"{short(mark.objective)} at {shown(mark.value)}" for mark in ordered)
    described = f"{title}. {words}."
    return element(
        "figure",
        element("figcaption", element("b", title)),
        drawing(
            described,
            *_grid(heights, left, right, f"{objective} (log)" if heights.is_log else objective),
            *_floor(scale, left, right, parameter),
            *drawn,
            width=WIDTH,
            height=HEIGHT,
        ),
    )


def _across(place: float, left: float, right: float) -> float:
    return left + INSET + place * (right - left - 2 * INSET)


def _up(place: float) -> float:
    return HEIGHT - BOTTOM - INSET - place * (HEIGHT - BOTTOM - TOP - INSET)


def _grid(scale: Scale, left: float, right: float, unit: str) -> list[Html]:
    parts = [element("text", unit, x=2, y=12, class_="unit")]
    for place, label in scale.ticks:
        y = _up(place)
        parts.append(element("line", x1=left, x2=right, y1=y, y2=y, class_="grid"))
        parts.append(element("text", label, x=left - 6, y=y + 4, text_anchor="end"))
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
            # Long words at the ends stay inside.
            half = CHAR_WIDTH * len(label) / 2
            middle = min(max(at, half), WIDTH - half)
            parts.append(element("text", label, x=middle, y=floor + 16, text_anchor="middle"))
    name = f"{parameter} (log)" if scale.is_log else parameter
    middle = (left + right) / 2
    parts.append(element("text", name, x=middle, y=HEIGHT - 6, text_anchor="middle", class_="unit"))
    return parts
