"""The figure of `palimpsest plan`: one SVG that stands alone, a chart below the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trainer.report.element import Html, element
from trainer.report.figure import HEIGHT, WIDTH, plot
from trainer.report.series import Series
from trainer.report.style import STYLE

HEADING = 34.0
"""Height of a chart's heading."""


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart; `reference` is a labelled level."""

    title: str
    y_unit: str
    lines: Sequence[Series]
    reference: tuple[str, float] | None = None
    x_unit: str = "r"


def plan_svg(charts: Sequence[Chart]) -> str:
    """Return the charts one below the other as an SVG file."""
    block = HEIGHT + HEADING
    height = block * len(charts) + 8
    groups: list[Html] = []
    described = []
    for number, chart in enumerate(charts):
        inside, words = plot(
            chart.title, chart.x_unit, chart.y_unit, chart.lines, chart.reference, from_zero=True
        )
        heading = element("text", chart.title, x=2, y=18, class_="name")
        body = element("g", inside, transform=f"translate(0 {HEADING:.0f})")
        groups.append(element("g", heading, body, transform=f"translate(8 {block * number + 4:.0f})"))
        described.append(words)
    width = WIDTH + 16
    drawn = element(
        "svg",
        element("style", Html(STYLE)),
        element("rect", width=width, height=height, class_="plate"),
        *groups,
        xmlns="http://www.w3.org/2000/svg",
        viewbox=f"0 0 {width:.0f} {height:.0f}",
        width=2 * width,
        font_family="system-ui, sans-serif",
        role="img",
        aria_label=" ".join(described),
    )
    return f"{drawn}\n"
