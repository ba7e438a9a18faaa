"""Where the weights moved: a square for each layer and kind of matrix, as dark as it moved from the base."""

from __future__ import annotations

from dataclasses import replace

from trainer.evaluate.layer_drift import DriftGroup, DriftRecord
from trainer.report.element import Child, Html, drawing, element, table
from trainer.report.number import count, percent
from trainer.report.record import RunRecord
from trainer.report.section import figures, missing, paragraph, section

WIDTH, LEFT, TOP, ROW = 400.0, 84.0, 24.0, 26.0
FLOOR = 44.0
TITLE = "Relative change of the weights by layer and kind"


def layers(record: RunRecord) -> Html | None:
    """Return the section; None where nothing was measured."""
    found = record.drift
    if found is None:
        return None
    heading = "Where the weights moved"
    if found.why is not None:
        return section("layers", heading, missing(f"Not measured: {found.why}"))
    new = f" {count(found.num_new)} tensors that the base has not are left out." if found.num_new else ""
    inside = [one for one in found.groups if one.layer is not None]
    outside = [one for one in found.groups if one.layer is None]
    rows: list[list[Child]] = [[one.kind, _shown(one.relative)] for one in outside]
    return section(
        "layers",
        heading,
        paragraph(
            f"Of all weights of {found.tuned} the change is {_shown(found.total)} of the base's size: the length of "
            f"w - w0 over that of w0, both as one long vector.{new} An adapter counts as what it adds to the base. "
            "More movement is no loss by itself."
        ),
        figures(_figure(TITLE, inside), _over_time(found)) if inside else None,
        table(["Outside of layers", "Moved by"], rows, "Weights that stand in no layer") if rows else None,
    )


def _shown(share: float | None) -> str:
    if share is None:
        return "unknown: the base is 0 there"
    return percent(share) if share >= 0.001 or not share else f"{100 * share:.2g} %"


def _over_time(found: DriftRecord) -> Html | None:
    """Return a row for each checkpoint that was measured, the first on top; None for one alone."""
    if not found.earlier:
        return None
    rows = [
        replace(one, kind=f"step {count(int(record.tuned.rpartition('-')[2]))}")
        for record in (*reversed(found.earlier), found)
        for one in record.by_layer()
    ]
    return _figure("Relative change of the weights by layer and checkpoint", rows)


def _figure(title: str, inside: list[DriftGroup]) -> Html:
    kinds = list(dict.fromkeys(one.kind for one in inside))
    numbers = sorted({one.layer for one in inside if one.layer is not None})
    most = max((one.relative or 0.0 for one in inside), default=0.0)
    wide = (WIDTH - LEFT - 8) / max(len(numbers), 1)
    drawn = []
    for one in inside:
        share = one.relative or 0.0
        x, y = LEFT + wide * numbers.index(one.layer or 0), TOP + ROW * kinds.index(one.kind)
        hover = element("title", f"layer {one.layer}, {one.kind}: {_shown(one.relative)}")
        depth = round(100 * share / most) if most else 0
        drawn.append(
            element("rect", hover, x=x, y=y, width=wide, height=ROW - 4, style=_style(depth), class_="cell")
        )
    floor = TOP + ROW * len(kinds)
    labels = [
        element("text", kind, x=LEFT - 6, y=TOP + ROW * row + 15, text_anchor="end")
        for row, kind in enumerate(kinds)
    ]
    for number in {numbers[0], numbers[-1]}:
        x = LEFT + wide * (numbers.index(number) + 0.5)
        labels.append(element("text", str(number), x=x, y=floor + 14, text_anchor="middle"))
    unit = f"layer; darkest: {_shown(most)}"
    labels.append(
        element("text", unit, x=(LEFT + WIDTH - 8) / 2, y=floor + 32, text_anchor="middle", class_="unit")
    )
    words = "; ".join(f"layer {one.layer} {one.kind} {_shown(one.relative)}" for one in inside)
    described = f"{title}. {words}."
    return element(
        "figure",
        element("figcaption", element("b", title)),
        drawing(described, *drawn, *labels, width=WIDTH, height=max(floor + FLOOR, 120)),
        class_="wide",
    )


def _style(depth: int) -> str:
    return f"fill: color-mix(in srgb, var(--lost) {depth}%, var(--box))"
