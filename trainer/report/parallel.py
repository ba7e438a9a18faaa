"""Parallel coordinates: an axis for every parameter and one for the objective, a line for every point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trainer.report.element import Html, drawing, element
from trainer.report.number import short
from trainer.report.scale import Scale, chosen_scale, measured_scale

LEAST_GAP, LEAST_SPAN = 104.0, 330.0
"""Between two axes, and between the outer ones."""
LEFT, RIGHT = 48.0, 50.0
TOP, FLOOR = 40.0, 236.0
HEIGHT = 250.0
MAX_NAME_CHARS = 16
MAX_TICK_CHARS = 12
FAINTEST = 0.25


@dataclass(frozen=True, slots=True)
class Line:
    """One point: its values as they stand in overrides, and its objective; None where there is none."""

    name: str
    values: tuple[str, ...]
    objective: float | None


def parallel_coordinates(
    title: str, names: Sequence[str], objective: str, lines: Sequence[Line], less_is_better: bool
) -> Html:
    """Return the figure; the best line is drawn thick, a line without an objective ends before the last axis."""
    scales = [chosen_scale([line.values[number] for line in lines]) for number in range(len(names))]
    known = [line for line in lines if line.objective is not None]
    goal = measured_scale({line.name: line.objective for line in known if line.objective is not None})
    ordered = sorted(known, key=lambda line: (line.objective or 0.0) * (1 if less_is_better else -1))
    gap = max(LEAST_GAP, LEAST_SPAN / len(names))
    width = LEFT + gap * len(names) + RIGHT
    axes = [
        part
        for number, (name, scale) in enumerate(zip([*names, objective], [*scales, goal], strict=True))
        for part in _axis(LEFT + gap * number, name, scale)
    ]
    # The best last, over all others.
    ranked = [(ordered.index(line) if line in ordered else None, line) for line in lines]
    ranked.sort(key=lambda pair: (pair[0] is not None, -(pair[0] or 0)))
    drawn = [_line(line, rank, len(ordered), [*scales, goal], gap) for rank, line in ranked]
    better = "lower" if less_is_better else "higher"
    note = f"One line a point; {objective}: {better} is better; the best is thick, dashed ones have no objective."
    described = f"{title}. {note}" + (
        f" Best: {ordered[0].name}, {short(ordered[0].objective or 0.0)}." if ordered else ""
    )
    return element(
        "figure",
        element("figcaption", element("b", title), element("span", note, class_="note")),
        drawing(described, *drawn, *axes, width=width, height=HEIGHT),
        class_="wide",
    )


def _axis(x: float, name: str, scale: Scale) -> list[Html]:
    parts = [
        element("line", x1=x, x2=x, y1=TOP, y2=FLOOR, class_="axis"),
        element("text", _shortened(name), x=x, y=16, text_anchor="middle", class_="name"),
    ]
    if scale.is_log:
        parts.append(element("text", "log", x=x, y=30, text_anchor="middle", class_="unit"))
    for place, label in scale.ticks:
        y = _height(place)
        parts.append(element("line", x1=x - 3, x2=x + 3, y1=y, y2=y, class_="axis"))
        text = label if len(label) <= MAX_TICK_CHARS else label[: MAX_TICK_CHARS - 1] + "\u2026"
        parts.append(element("text", text, x=x - 6, y=y + 4, text_anchor="end", class_="halo"))
    return parts


def _line(line: Line, rank: int | None, num_ranked: int, scales: Sequence[Scale], gap: float) -> Html:
    """Return the line of a point; the better, the stronger."""
    *chosen, goal = scales
    heights = [scale.places[value] for scale, value in zip(chosen, line.values, strict=True)]
    if line.objective is not None:
        heights.append(goal.places[line.name])
    places = [(LEFT + gap * number, _height(place)) for number, place in enumerate(heights)]
    result = "failed" if line.objective is None else short(line.objective)
    kind, strength = "s6 failed", 1.0
    if rank is not None:
        kind = "s2 best" if rank == 0 else "s1"
        strength = 1.0 if rank == 0 else 1 - (1 - FAINTEST) * rank / max(num_ranked - 1, 1)
    return element(
        "g",
        element("title", f"{line.name}: {result}"),
        element("path", d="M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in places)),
        class_=kind,
        opacity=strength,
    )


def _height(place: float) -> float:
    return FLOOR - place * (FLOOR - TOP)


def _shortened(name: str) -> str:
    """Return the end of a key, which tells more than its beginning."""
    return name if len(name) <= MAX_NAME_CHARS else "\u2026" + name[1 - MAX_NAME_CHARS :]
