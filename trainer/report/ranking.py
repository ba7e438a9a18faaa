"""How a checkpoint ranks held-out pairs, for its model card: right, with an interval, and by the length of answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from trainer.config.metric import ACCURACY
from trainer.metrics.tracker import by_source
from trainer.report.markdown import pipe_table
from trainer.report.number import percent
from trainer.report.record import RunRecord

CHANCE = 0.5


@dataclass(frozen=True, slots=True)
class PairRanking:
    """Shares of the held-out pairs of a source that are ranked right, in [0, 1]."""

    source: str
    right: float
    low: float
    high: float
    """The 95 % interval is from `low` to `high`."""
    longer: float | None
    """Of pairs whose chosen answer is longer; None where there are none."""
    shorter: float | None


def rankings(record: RunRecord, checkpoint: str | None) -> list[PairRanking]:
    """Return what the evaluation at a checkpoint such as `step-00000030` found; none where there was none."""
    number = (checkpoint or "").rpartition("-")[2]
    rows = [row for row in record.metrics.rows if number.isdigit() and row["step"] == int(number)]
    found = []
    for source in record.metrics.names(f"{ACCURACY}/"):
        keys = [by_source(f"{ACCURACY}{end}", source) for end in ("", "_low", "_high", "_longer", "_shorter")]
        of: list[Any] = [next((row[key] for row in reversed(rows) if key in row), None) for key in keys]
        if None not in of[:3]:
            found.append(PairRanking(source, *of))
    return found


def ranking_limits(found: list[PairRanking]) -> Iterator[str]:
    """Yield what a person must know before scores are relied on."""
    for one in found:
        if one.low <= CHANCE:
            yield (
                f"It ranks {percent(one.right)} of held-out pairs of {one.source} right, {percent(one.low)} to "
                f"{percent(one.high)}: that is no better than chance."
            )
        elif one.longer is not None and one.shorter is not None and min(one.longer, one.shorter) < CHANCE:
            favoured = "shorter" if one.longer < one.shorter else "longer"
            yield (
                f"It favours {favoured} answers: of {one.source} it ranks {percent(one.longer)} right where the chosen "
                f"answer is longer, and {percent(one.shorter)} where it is shorter."
            )


def ranking_table(found: list[PairRanking]) -> str:
    """Return the shares of all sources."""
    header = (
        "Held-out pairs",
        "Ranked right",
        "95 % interval",
        "Where chosen is longer",
        "Where it is shorter",
    )
    rows = [
        (one.source, percent(one.right), f"{percent(one.low)} to {percent(one.high)}", *_by_length(one))
        for one in found
    ]
    return f"Half right is chance; the interval takes pairs for independent.\n\n{pipe_table(header, rows)}"


def _by_length(one: PairRanking) -> tuple[str, ...]:
    return tuple("none" if share is None else percent(share) for share in (one.longer, one.shorter))
