"""Drift against learning of all arms, a panel a shift and a measure, as SVG.

    python benchmarks/forgetting/pareto.py benchmarks/results/forgetting_arms.json --out docs/img/forgetting_arms.svg

A point is an arm at equal tokens: mean over seeds, bars the interval of 95 %. Right is more learnt, as a share of
what is learnt without anything done about drift; down is less drift. Ringed is what no other arm beats in both.
Lines: `none` over its rates, and over alpha with the base.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from judge import INTERPOLATED, REFERENCE, frontier

from trainer.report.element import Html, element, join
from trainer.report.number import tick_labels, ticks

WIDTH, HEIGHT = 400.0, 280.0
LEFT, RIGHT, TOP, BOTTOM = 52.0, 22.0, 34.0, 44.0
LEGEND_ROW, LEGEND_COLUMNS = 17.0, 3
MEASURES = {"drift": "KL to the base on conversations (nats)", "rise": "mean rise of the probes' loss (nats)"}
COLOURS = {
    "LoRA": "#8a5a9e",
    "mean of": "#b08a2c",
    "alpha": "#b0562c",
    "base decay": "#c23b6b",
    "KL": "#1f8a4c",
    "self": "#0b6fb8",
    "general": "#4aa3df",
    "none": "#555555",
}
"""By the first of these words that an arm's name holds."""
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#222}.tick{font-size:11px;fill:#555}.name{font-weight:600}"
    ".number{font-size:9px}@media(prefers-color-scheme:dark){text{fill:#ddd}.tick{fill:#aaa}.ground{fill:#151515}}"
)
Pair = tuple[float, float]


def main() -> None:
    """Write the SVG."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("json", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    record = json.loads(arguments.json.read_text(encoding="utf-8"))
    arguments.out.write_text(figure(record) + "\n", encoding="utf-8")


def figure(record: dict[str, Any]) -> str:
    """Return the SVG of a record: a row a measure, a column a shift, and the legend."""
    rows = record["arms"]
    shifts = list(dict.fromkeys(row["shift"] for row in rows))
    names = list(dict.fromkeys(row["arm"] for row in rows if not _is_between(row)))
    best = frontier(rows)
    panels = []
    for i, (measure, unit) in enumerate(MEASURES.items()):
        for j, shift in enumerate(shifts):
            of_shift = [row for row in rows if row["shift"] == shift]
            inside = panel(
                f"{shift}: {unit}", of_shift, measure, names, best if measure == "drift" else set()
            )
            panels.append(element("g", inside, transform=f"translate({j * WIDTH:g},{i * HEIGHT:g})"))
    width, top = WIDTH * max(len(shifts), 2), HEIGHT * len(MEASURES)
    height = top + LEGEND_ROW * (-(-len(names) // LEGEND_COLUMNS) + 1)
    return element(
        "svg",
        element("style", Html(STYLE)),
        element("rect", width=width, height=height, fill="#ffffff", class_="ground"),
        *panels,
        legend(names, top + 8, width),
        xmlns="http://www.w3.org/2000/svg",
        viewbox=f"0 0 {width:g} {height:g}",
    )


def colour_of(name: str) -> str:
    """Return the colour of an arm's family."""
    return next((colour for word, colour in COLOURS.items() if word in name), "#555555")


def panel(
    title: str, rows: Sequence[dict[str, Any]], measure: str, names: Sequence[str], best: set[tuple[str, str]]
) -> Html:
    """Return axes, lines and points of one panel."""
    spots = {row["arm"]: (_ends(row["kept"], 100), _ends(row[measure])) for row in rows}
    xs = [value for (mean, half), _ in spots.values() for value in (mean - half, mean + half)]
    ys = [0.0, *(value for _, (mean, half) in spots.values() for value in (mean - half, mean + half))]
    x_ticks, y_ticks = ticks(min(xs), max(xs), 5), ticks(min(ys), max(ys), 5)

    def x_of(value: float) -> float:
        return LEFT + (value - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * (WIDTH - LEFT - RIGHT)

    def y_of(value: float) -> float:
        return HEIGHT - BOTTOM - (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (HEIGHT - TOP - BOTTOM)

    parts = [element("text", title, x=8, y=16, class_="name")]
    for value, label in zip(y_ticks, tick_labels(y_ticks), strict=True):
        shade = "#888888" if abs(value) < 1e-12 else "#88888840"
        parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y_of(value), y2=y_of(value), stroke=shade))
        parts.append(element("text", label, x=LEFT - 6, y=y_of(value) + 4, text_anchor="end", class_="tick"))
    for value, label in zip(x_ticks, tick_labels(x_ticks), strict=True):
        parts.append(
            element("text", label, x=x_of(value), y=HEIGHT - BOTTOM + 16, text_anchor="middle", class_="tick")
        )
    caption, middle = "learnt, in % of what is learnt without (none)", (LEFT + WIDTH - RIGHT) / 2
    parts.append(element("text", caption, x=middle, y=HEIGHT - 9, text_anchor="middle", class_="tick"))
    for line, colour in _lines(rows):
        ends = (spots[row["arm"]] for row in line)
        points = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for (x, _), (y, _) in ends)
        parts.append(element("polyline", points=points, fill="none", stroke=colour, stroke_width=1))
    for row in (row for row in rows if row["arm"] in names):
        (x, x_half), (y, y_half) = spots[row["arm"]]
        is_best = (row["shift"], row["arm"]) in best
        parts.append(_spot(row["arm"], names.index(row["arm"]) + 1, (x_of(x), y_of(y)), is_best))
        colour = colour_of(row["arm"])
        for first, second in (((x - x_half, y), (x + x_half, y)), ((x, y - y_half), (x, y + y_half))):
            ends_at = {
                "x1": x_of(first[0]),
                "y1": y_of(first[1]),
                "x2": x_of(second[0]),
                "y2": y_of(second[1]),
            }
            parts.append(element("line", **ends_at, stroke=colour, stroke_width=1, stroke_opacity=0.5))
    return join(*parts)


def _ends(pair: Sequence[float | None], scale: float = 1.0) -> Pair:
    mean, half = pair
    return scale * (mean or 0.0), scale * (half or 0.0)


def _is_between(row: dict[str, Any]) -> bool:
    """Tell whether an arm is a mixture with the base, which is drawn as a part of a line."""
    return INTERPOLATED in row["method"] and row["order"] < 1


def _lines(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[list[dict[str, Any]], str]]:
    """Yield the arms of each line in their order: `none` by rate, and what was swept by alpha, up to what it is of."""
    for method in dict.fromkeys(row["method"] for row in rows):
        if method == REFERENCE or INTERPOLATED in method:
            of = method.removeprefix(f"{INTERPOLATED} of ")
            line = sorted((row for row in rows if row["method"] == method), key=lambda row: row["order"])
            line += [row for row in rows if row["arm"] == of and method != REFERENCE]
            if len(line) > 1:
                yield line, colour_of(line[0]["arm"])


def _spot(name: str, number: int, at: Pair, is_best: bool) -> Html:
    """Return a dot with its number, ringed where it is one of the best; a title says which arm it is."""
    x, y = at
    ring = [element("circle", cx=x, cy=y, r=7.5, fill="none", stroke="#222222")] if is_best else []
    return element(
        "g",
        element("title", name),
        element("circle", cx=x, cy=y, r=4.5, fill=colour_of(name), fill_opacity=0.85),
        *ring,
        element("text", str(number), x=x + 6, y=y - 5, class_="number"),
    )


def legend(names: Sequence[str], top: float, width: float) -> Html:
    """Return numbers and names, in columns."""
    parts, rows = [], -(-len(names) // LEGEND_COLUMNS)
    for index, name in enumerate(names):
        x, y = 16 + index // rows * (width - 16) / LEGEND_COLUMNS, top + index % rows * LEGEND_ROW
        parts.append(element("circle", cx=x, cy=y, r=4.5, fill=colour_of(name)))
        parts.append(element("text", f"{index + 1}  {name}", x=x + 10, y=y + 4, class_="tick"))
    return join(*parts)


if __name__ == "__main__":
    main()
