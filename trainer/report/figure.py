"""Line charts as SVG: axes with units, round ticks, direct labels, hover titles.

Drawn 400 wide, so that a figure is readable on a phone at full width and two stand side by side on a laptop.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.report.element import Html, element, join
from trainer.report.number import short, tick_labels, ticks
from trainer.report.series import Point, Series, thinned

WIDTH, HEIGHT = 400.0, 236.0
TOP, BOTTOM = 26.0, 40.0
CHAR_WIDTH = 6.9
"""Of the 11-point labels, on average and a little wide."""
LABEL_GAP = 13.0
MAX_LABEL_CHARS = 18
NUM_COLOURS = 6
MAX_DOTS, MAX_HOVERS = 40, 120


@dataclass(frozen=True, slots=True)
class Axes:
    """Where the plot stands in the picture, and which values its edges have.

    The horizontal axis ends with the data, so that a line ends beside its label; the vertical one with a tick.
    """

    left: float
    right: float
    x_range: Point
    x_ticks: list[float]
    y_ticks: list[float]

    def x(self, value: float) -> float:
        """Return the horizontal place of a value."""
        return _between(value, self.x_range, self.left, self.right)

    def y(self, value: float) -> float:
        """Return the vertical place of a value."""
        return _between(value, (self.y_ticks[0], self.y_ticks[-1]), HEIGHT - BOTTOM, TOP)


def line_chart(
    title: str,
    x_unit: str,
    y_unit: str,
    lines: Sequence[Series],
    reference: tuple[str, float] | None = None,
    from_zero: bool = False,
    min_span: float = 0.0,
    note: str = "",
) -> Html:
    """Return a figure of one or more series; `reference` is a labelled dashed level.

    Lines without points are left out; `from_zero` begins the vertical axis at 0, and it covers at
    least `min_span`. Where all points stand at one place there is no curve: their values are said.
    """
    lines = [line for line in lines if line.points]
    left_out = sum(line.num_left_out for line in lines)
    notes = [note, f"{left_out} values that are not finite are left out." if left_out else ""]
    written = [_note(text) for text in notes]
    if len({x for line in lines for x, _ in line.points}) < 2:
        said = element("p", _single(x_unit, y_unit, lines, reference))
        return element("figure", element("figcaption", element("b", title), *written), said)
    drawn, described = plot(title, x_unit, y_unit, lines, reference, from_zero, min_span)
    return element(
        "figure",
        element("figcaption", element("b", title), _legend(lines), *written),
        element(
            "svg",
            drawn,
            viewbox=f"0 0 {WIDTH:.0f} {HEIGHT:.0f}",
            role="img",
            aria_label=described,
        ),
    )


def plot(
    title: str,
    x_unit: str,
    y_unit: str,
    lines: Sequence[Series],
    reference: tuple[str, float] | None = None,
    from_zero: bool = False,
    min_span: float = 0.0,
) -> tuple[Html, str]:
    """Return what stands inside the SVG of a figure, WIDTH x HEIGHT, and the figure in words.

    Every line has points.
    """
    labels = [_label(line, alone=len(lines) == 1) for line in lines]
    if reference is not None:
        labels.append(_shorten(f"{reference[0]} {short(reference[1])}"))
    axes = _axes(lines, reference, from_zero, min_span, max(map(len, labels)))
    drawn = [_line(axes, line, number) for number, line in enumerate(lines)]
    ends = [axes.y(line.points[-1][1]) for line in lines]
    if reference is not None:
        y = axes.y(reference[1])
        drawn.insert(0, element("line", x1=axes.left, x2=axes.right, y1=y, y2=y, class_="reference"))
        ends.append(y)
    described = f"{title}. {y_unit} against {x_unit}. " + "; ".join(_in_words(line) for line in lines)
    if reference is not None:
        described += f"; {reference[0]} {short(reference[1])}"
    inside = join(
        element("title", described),
        _grid(axes, x_unit, y_unit),
        *drawn,
        *_end_labels(axes.right, labels, ends, len(lines)),
    )
    return inside, described


def _single(x_unit: str, y_unit: str, lines: Sequence[Series], reference: tuple[str, float] | None) -> str:
    """Say the values of lines that have one each, at the same place."""
    levels = [(line.label, line.points[-1][1]) for line in lines] + ([reference] if reference else [])
    values = ", ".join(f"{label} {short(value)}" for label, value in levels)
    unit = "" if lines[0].label == y_unit else f" ({y_unit})"
    return f"One value, at {x_unit} {short(lines[0].points[-1][0])}: {values}{unit}."


def _between(value: float, edges: Point, start: float, end: float) -> float:
    return start + (value - edges[0]) / (edges[1] - edges[0]) * (end - start)


def _axes(
    lines: Sequence[Series],
    reference: tuple[str, float] | None,
    from_zero: bool,
    min_span: float,
    longest_label: int,
) -> Axes:
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points] + ([reference[1]] if reference else [])
    ys += [y + sign * half for line in lines for (_, y), half in _intervals(line) for sign in (-1, 1)]
    low, high = min([0.0, *ys] if from_zero else ys), max(ys)
    room = max(0.0, min_span - (high - low)) / 2
    y_ticks = ticks(low - room, high + room, 5)
    left = 12 + CHAR_WIDTH * max(map(len, tick_labels(y_ticks)))
    right = WIDTH - 9 - CHAR_WIDTH * longest_label
    first, last = min(xs), max(max(xs), min(xs) + 1)
    x_ticks = [tick for tick in ticks(first, last, 6, whole=True) if first <= tick <= last]
    return Axes(left, right, (first, last), x_ticks or [first], y_ticks)


def _grid(axes: Axes, x_unit: str, y_unit: str) -> Html:
    floor = HEIGHT - BOTTOM
    parts = [element("text", y_unit, x=2, y=12, class_="unit")]
    for value, label in zip(axes.y_ticks, tick_labels(axes.y_ticks), strict=True):
        y = axes.y(value)
        parts.append(element("line", x1=axes.left, x2=axes.right, y1=y, y2=y, class_="grid"))
        parts.append(element("text", label, x=axes.left - 6, y=y + 4, text_anchor="end"))
    labels = tick_labels(axes.x_ticks)
    room = (axes.right - axes.left) / max(len(labels) - 1, 1)
    stride = 2 if CHAR_WIDTH * max(map(len, labels)) + 4 > room else 1
    for number, (value, label) in enumerate(zip(axes.x_ticks, labels, strict=True)):
        x = axes.x(value)
        parts.append(element("line", x1=x, x2=x, y1=floor, y2=floor + 4, class_="axis"))
        if number % stride == 0:
            parts.append(element("text", label, x=x, y=floor + 16, text_anchor="middle"))
    parts.append(element("line", x1=axes.left, x2=axes.right, y1=floor, y2=floor, class_="axis"))
    middle = (axes.left + axes.right) / 2
    parts.append(element("text", x_unit, x=middle, y=HEIGHT - 6, text_anchor="middle", class_="unit"))
    return join(*parts)


def _line(axes: Axes, line: Series, number: int) -> Html:
    points = thinned(line.points)
    places = [(axes.x(at), axes.y(value)) for at, value in points]
    path = "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in places)
    marks = [
        element(
            "line",
            x1=axes.x(at),
            x2=axes.x(at),
            y1=axes.y(value - half),
            y2=axes.y(value + half),
            class_="bar",
        )
        for (at, value), half in _intervals(line)
    ]
    stride = -(-len(points) // MAX_HOVERS)
    for (x, y), (at, value) in list(zip(places, points, strict=True))[::stride]:
        hover = element("title", f"{line.label}: {short(value)} at {short(at)}")
        kind = "dot" if len(points) <= MAX_DOTS else "hover"
        marks.append(element("circle", hover, cx=x, cy=y, r=2.5 if kind == "dot" else 5, class_=kind))
    return element("g", element("path", d=path), *marks, class_=_colour(number))


def _intervals(line: Series) -> list[tuple[Point, float]]:
    """Return the points that have an interval, and half of it."""
    return [(point, half) for point, half in zip(line.points, line.spreads, strict=False) if half > 0]


def _end_labels(left: float, labels: list[str], ends: list[float], num_lines: int) -> list[Html]:
    places = _spread(ends)
    return [
        element("text", label, x=left + 6, y=y + 4, class_=_colour(n) if n < num_lines else "reference-label")
        for n, (label, y) in enumerate(zip(labels, places, strict=True))
    ]


def _spread(places: list[float]) -> list[float]:
    """Move labels apart until none overlaps, inside the plot as far as they fit."""
    order = sorted(range(len(places)), key=lambda number: places[number])
    moved = list(places)
    for above, below in itertools.pairwise(order):
        moved[below] = max(moved[below], moved[above] + LABEL_GAP)
    lowest = HEIGHT - BOTTOM
    for number in reversed(order):
        moved[number] = min(moved[number], lowest)
        lowest = moved[number] - LABEL_GAP
    return moved


def _legend(lines: Sequence[Series]) -> Html | None:
    """Return full names for the labels of a figure with several lines."""
    keys = [element("span", line.label, class_=f"key {_colour(n)}") for n, line in enumerate(lines)]
    return element("span", *keys, class_="legend") if len(keys) > 1 else None


def _note(text: str) -> Html | None:
    return element("span", text, class_="note") if text else None


def _colour(number: int) -> str:
    return f"s{number % NUM_COLOURS + 1}"


def _label(line: Series, alone: bool) -> str:
    return short(line.points[-1][1]) if alone else _shorten(line.label)


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_LABEL_CHARS else text[: MAX_LABEL_CHARS - 1] + "\u2026"


def _in_words(line: Series) -> str:
    first, last = line.points[0][1], line.points[-1][1]
    return f"{line.label} from {short(first)} to {short(last)}"
