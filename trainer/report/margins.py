"""How far chosen answers of held-out pairs were ahead at the newest evaluation: a count for each range of margins."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from trainer.errors import TrainerError
from trainer.report.element import Html
from trainer.report.figure import line_chart
from trainer.report.record import RunRecord
from trainer.report.series import Series


def margin_charts(record: RunRecord) -> Iterator[Html]:
    """Yield a figure for every source of pairs.

    Raises:
        TrainerError: The file is not as a run writes it.
    """
    step = record.margins.get("step")
    for name, found in (record.margins.get("sources") or {}).items():
        try:
            edges, counts = (
                [float(edge) for edge in found["edges"]],
                [int(count) for count in found["counts"]],
            )
            middles = [(low + high) / 2 for low, high in pairwise(edges)]
            line = Series("pairs", tuple(zip(middles, map(float, counts), strict=True)))
        except (KeyError, TypeError, ValueError) as error:
            raise TrainerError(
                f"held_out_margins.json of {record.run_dir} must hold edges and counts of {name}, but does not "
                f"({error}). Delete the file."
            ) from error
        yield line_chart(
            f"Margins of held-out pairs of {name}, step {step}",
            "margin of the chosen answer (middle of a range)",
            "pairs",
            [line],
            from_zero=True,
            note="Pairs left of 0 are ranked wrong.",
        )
