"""Draw forgetting against learning, from what run.py wrote; several files are several groups of arms.

    python benchmarks/forgetting/plot.py benchmarks/results/forgetting*.json --out docs/img/forgetting.svg

A point is an arm: mean over seeds, bars one standard deviation. Right is more learnt, up is more forgotten. The line is
base + alpha (tuned - base) of one run without replay, where its losses are there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.report.element import Html, element, join
from trainer.report.number import tick_labels, ticks

WIDTH, HEIGHT = 400.0, 250.0
LEFT, RIGHT, TOP, BOTTOM = 52.0, 22.0, 34.0, 42.0
LEGEND_ROW = 20.0
ROWS = {
    "maths": "rise of held-out loss on maths (nats)",
    "KL on chats": "KL to the base on conversations (nats)",
}
COLOURS = {"half the rate": "#a8a8a8", "none": "#555555", "general": "#0b6fb8", "self-generated": "#1f8a4c"}
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#222}.tick{font-size:11px;fill:#555}.name{font-weight:600}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}.tick{fill:#aaa}.ground{fill:#151515}}"
)


@dataclass(frozen=True)
class Spot:
    """One arm in one panel: (mean, deviation) across and up."""

    arm: str
    x: tuple[float, float]
    y: tuple[float, float]

    @property
    def colour(self) -> str:
        """Return the colour of the arm's replay."""
        return next((colour for name, colour in COLOURS.items() if name in self.arm), COLOURS["none"])


def main() -> None:
    """Write the SVG."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("json", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    records = [json.loads(path.read_text(encoding="utf-8")) for path in arguments.json]
    record = {
        "summary": [row for record in records for row in record["summary"]],
        "interpolation": next(
            (record["interpolation"] for record in records if record["interpolation"]), None
        ),
    }
    arguments.out.write_text(figure(record) + "\n", encoding="utf-8")


def figure(record: dict[str, Any]) -> str:
    """Return the SVG: a row a measure, a column a shift, and the legend."""
    shifts = list(dict.fromkeys(row["shift"] for row in record["summary"]))
    panels = []
    for i, (measure, unit) in enumerate(ROWS.items()):
        for j, shift in enumerate(shifts):
            spots = list(spots_of(record, shift, measure))
            inside = panel(shift, unit, spots, curve_of(record, shift, measure))
            panels.append(element("g", inside, transform=f"translate({j * WIDTH:g},{i * HEIGHT:g})"))
    arms = list(dict.fromkeys(row["arm"] for row in record["summary"]))
    width, top = WIDTH * len(shifts), HEIGHT * len(ROWS)
    height = top + LEGEND_ROW * (len(arms) // 2 + 1) + 8
    ground = element("rect", width=width, height=height, fill="#ffffff", class_="ground")
    svg = element(
        "svg",
        element("style", Html(STYLE)),
        ground,
        *panels,
        legend(arms, top + 14),
        xmlns="http://www.w3.org/2000/svg",
        viewbox=f"0 0 {width:g} {height:g}",
    )
    return svg


def spots_of(record: dict[str, Any], shift: str, measure: str) -> Iterator[Spot]:
    """Return the arms of a shift; what the target fell by is positive."""
    for row in record["summary"]:
        if row["shift"] == shift:
            mean, deviation = row["changes"]["target"]
            up, up_deviation = row["changes"][measure]
            yield Spot(row["arm"], (-mean, deviation), (up, up_deviation))


def curve_of(record: dict[str, Any], shift: str, measure: str) -> list[tuple[float, float]]:
    """Return (fall of the target, change of the measure) over alpha, or nothing where it was not measured."""
    found = record.get("interpolation")
    if not found or not found["run"].startswith(shift) or measure not in found["points"][0]["losses"]:
        return []
    base = found["points"][0]
    return [
        (base["target_nats"] - point["target_nats"], point["losses"][measure] - base["losses"][measure])
        for point in found["points"]
    ]


def panel(shift: str, unit: str, spots: list[Spot], curve: list[tuple[float, float]]) -> Html:
    """Return the axes, the curve and the spots of one panel."""
    xs = [end for spot in spots for end in (spot.x[0] - spot.x[1], spot.x[0] + spot.x[1])]
    xs += [x for x, _ in curve if x >= 0.8 * min(xs)]
    ys = [0.0] + [end for spot in spots for end in (spot.y[0] - spot.y[1], spot.y[0] + spot.y[1])]
    x_ticks, y_ticks = ticks(min(xs), max(xs), 5), ticks(min(ys), max(ys), 5)

    def x_of(value: float) -> float:
        return LEFT + (value - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * (WIDTH - LEFT - RIGHT)

    def y_of(value: float) -> float:
        return HEIGHT - BOTTOM - (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (HEIGHT - TOP - BOTTOM)

    floor = HEIGHT - BOTTOM
    parts = [element("text", f"{shift} shift: {unit}", x=8, y=16, class_="name")]
    for value, label in zip(y_ticks, tick_labels(y_ticks), strict=True):
        y, strong = y_of(value), abs(value) < 1e-12
        shade = "#888888" if strong else "#88888840"
        parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, stroke=shade))
        parts.append(element("text", label, x=LEFT - 6, y=y + 4, text_anchor="end", class_="tick"))
    for value, label in zip(x_ticks, tick_labels(x_ticks), strict=True):
        parts.append(element("text", label, x=x_of(value), y=floor + 16, text_anchor="middle", class_="tick"))
    middle = (LEFT + WIDTH - RIGHT) / 2
    caption = "fall of held-out loss on the new text (nats)"
    parts.append(element("text", caption, x=middle, y=floor + 33, text_anchor="middle", class_="tick"))
    inside = [(x_of(x), y_of(y)) for x, y in curve if x >= x_ticks[0]]
    if inside:
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in inside)
        parts.append(element("polyline", points=points, fill="none", stroke="#b0562c", stroke_width=1.5))
    for spot in spots:
        x, y = x_of(spot.x[0]), y_of(spot.y[0])
        up = [y_of(spot.y[0] + sign * spot.y[1]) for sign in (-1, 1)]
        across = [x_of(spot.x[0] + sign * spot.x[1]) for sign in (-1, 1)]
        parts.append(element("line", x1=x, x2=x, y1=up[0], y2=up[1], stroke=spot.colour))
        parts.append(element("line", x1=across[0], x2=across[1], y1=y, y2=y, stroke=spot.colour))
        parts.append(mark(spot.arm, spot.colour, x, y))
    return join(*parts)


def mark(arm: str, colour: str, x: float, y: float) -> Html:
    """Return a dot as large as the replay's share, hollow for LoRA; a title says which arm it is."""
    share = next((float(word) for word in arm.split() if word.replace(".", "").isdigit()), 0.0)
    fill = "none" if "LoRA" in arm else colour
    radius = 4.0 + share**0.5
    return element(
        "g",
        element("title", arm),
        element("circle", cx=x, cy=y, r=radius, fill=fill, stroke=colour, stroke_width=2, fill_opacity=0.8),
    )


def legend(arms: list[str], top: float) -> Html:
    """Return a mark and a name an arm, in two columns, and the line's."""
    parts = []
    for number, arm in enumerate(arms):
        x, y = LEFT + (number % 2) * WIDTH, top + number // 2 * LEGEND_ROW
        colour = Spot(arm, (0, 0), (0, 0)).colour
        parts += [mark(arm, colour, x, y), element("text", arm, x=x + 16, y=y + 4)]
    x, y = LEFT + (len(arms) % 2) * WIDTH, top + len(arms) // 2 * LEGEND_ROW
    parts.append(element("line", x1=x - 8, x2=x + 8, y1=y, y2=y, stroke="#b0562c", stroke_width=1.5))
    parts.append(element("text", "none, interpolated with the base, seed 0", x=x + 16, y=y + 4))
    return join(*parts)


if __name__ == "__main__":
    main()
