"""How far chosen answers of held-out pairs were ahead at the newest evaluation: a bar for each range of margins."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

from trainer.config.many import many
from trainer.errors import TrainerError
from trainer.report.element import Html, drawing, element
from trainer.report.number import compact, count, tick_labels, ticks
from trainer.report.record import RunRecord

WIDTH, HEIGHT = 400.0, 236.0
LEFT, RIGHT, TOP, FLOOR = 40.0, 392.0, 26.0, 196.0
WRONG, TRUE = "s2", "s1"
"""Colours of bars left and right of 0."""


def margin_charts(record: RunRecord) -> Iterator[Html]:
    """Yield a figure for every source of pairs.

    Raises:
        TrainerError: The file is not as a run writes it.
    """
    step = record.margins.get("step")
    for name, found in (record.margins.get("sources") or {}).items():
        try:
            edges = [float(edge) for edge in found["edges"]]
            counts = [int(number) for number in found["counts"]]
            if not all(map(math.isfinite, edges)) or sorted(set(edges)) != edges:
                raise ValueError("edges that do not rise")
            if not counts or len(edges) != len(counts) + 1 or min(counts) < 0:
                raise ValueError(f"{many(len(counts), 'count')} for {many(len(edges), 'edge')}")
        except (KeyError, TypeError, ValueError) as error:
            raise TrainerError(
                f"held_out_margins.json of {record.run_dir} must hold edges and counts of {name}, but does not "
                f"({error}). Delete the file."
            ) from error
        yield _histogram(f"Margins of held-out pairs of {name}, step {step}", edges, counts)


def _histogram(title: str, edges: list[float], counts: list[int]) -> Html:
    """Return a figure with a bar a range; those whose middle is below 0 are of pairs that are ranked wrong."""
    marks = ticks(0.0, float(max(*counts, 1)), 4, whole=True)
    wide = (RIGHT - LEFT) / (edges[-1] - edges[0])

    def across(value: float) -> float:
        return LEFT + (value - edges[0]) * wide

    def height(value: float) -> float:
        return FLOOR - (FLOOR - TOP) * value / marks[-1]

    parts = [element("text", "pairs", x=2, y=12, class_="unit")]
    for mark, label in zip(marks, tick_labels(marks), strict=True):
        y = height(mark)
        parts.append(element("line", x1=LEFT, x2=RIGHT, y1=y, y2=y, class_="grid"))
        parts.append(element("text", label, x=LEFT - 6, y=y + 4, text_anchor="end"))
    for (low, high), number in zip(pairwise(edges), counts, strict=True):
        hover = element("title", f"{compact(low)} to {compact(high)}: {many(number, 'pair')}")
        x, y = across(low), height(number)
        side = WRONG if low + high < 0 else TRUE
        bar = element(
            "rect",
            hover,
            x=x + 0.5,
            y=y,
            width=max(across(high) - x - 1, 0.5),
            height=FLOOR - y,
            class_="mark",
        )
        parts.append(element("g", bar, class_=side))
    shown = [mark for mark in ticks(edges[0], edges[-1], 6) if edges[0] <= mark <= edges[-1]]
    for mark, label in zip(shown, tick_labels(shown), strict=True):
        parts.append(element("text", label, x=across(mark), y=FLOOR + 16, text_anchor="middle"))
    parts.append(element("line", x1=LEFT, x2=RIGHT, y1=FLOOR, y2=FLOOR, class_="axis"))
    if edges[0] < 0 < edges[-1]:
        parts.append(element("line", x1=across(0), x2=across(0), y1=TOP, y2=FLOOR, class_="zero"))
    unit = "margin of the chosen answer"
    parts.append(
        element("text", unit, x=(LEFT + RIGHT) / 2, y=HEIGHT - 6, text_anchor="middle", class_="unit")
    )
    described = f"{title}. " + "; ".join(
        f"{compact(low)} to {compact(high)}: {number}"
        for (low, high), number in zip(pairwise(edges), counts, strict=True)
        if number
    )
    note = f"{count(sum(counts))} pairs; those left of 0 are ranked wrong."
    return element(
        "figure",
        element("figcaption", element("b", title), element("span", note, class_="note")),
        drawing(described, *parts, width=WIDTH, height=HEIGHT),
    )
