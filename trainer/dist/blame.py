"""Which rank keeps the others waiting: from what each last said of itself. Pure: no clock, no connection.

In a collective all wait, so a hang shows on every rank. The one at fault is silent, or behind the others, or at the
same place but not in a collective.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SILENT_BEATS = 3.0
"""Beats missed in a row before a rank counts as silent."""


@dataclass(frozen=True, slots=True)
class Beat:
    """What a rank says of itself."""

    phase: str
    step: int
    entry: int
    mark: int
    age_s: float
    """Seconds at this place."""
    limit_s: float
    """Seconds that it may be."""
    where: str
    """Innermost line of its main thread."""
    waits: bool
    """Whether that is within a collective."""


@dataclass(frozen=True, slots=True)
class Heard:
    """The newest beat of a rank, and how long ago it came."""

    beat: Beat
    ago_s: float

    @property
    def age_s(self) -> float:
        """Return the seconds at its place, as far as is known."""
        return self.beat.age_s + self.ago_s

    @property
    def place(self) -> tuple[int, int]:
        """Return what orders ranks."""
        return self.beat.entry, self.beat.mark


def silent(heard: Mapping[int, Heard], beat_s: float) -> list[int]:
    """Return the ranks that have said nothing for longer than they may."""
    return [r for r, one in heard.items() if _is_silent(one, beat_s) and one.ago_s > one.beat.limit_s]


def blame(heard: Mapping[int, Heard], beat_s: float) -> list[int]:
    """Return the ranks that keep the others waiting for longer than they may; none where all is well."""
    if gone := silent(heard, beat_s):
        return gone
    least = min((one.place for one in heard.values()), default=None)
    behind = [rank for rank, one in heard.items() if one.place == least]
    # One of them that still gets on is whom the others wait for.
    if not behind or any(heard[rank].age_s <= heard[rank].beat.limit_s for rank in behind):
        return []
    if quiet := [rank for rank in behind if _is_silent(heard[rank], beat_s)]:
        return quiet
    if free := [rank for rank in behind if not heard[rank].beat.waits]:
        behind = free
    lines = Counter(heard[rank].beat.where for rank in behind)
    usual, times = lines.most_common(1)[0]
    odd = [rank for rank in behind if heard[rank].beat.where != usual]
    return odd if odd and times > len(odd) else behind


def sentence(ranks: Sequence[int], heard: Mapping[int, Heard], beat_s: float) -> str:
    """Say which ranks are at fault, and how that shows."""
    if len(ranks) == len(heard) > 1:
        one = heard[ranks[0]]
        phase, step, age_s = one.beat.phase, one.beat.step, one.age_s
        return f"All {len(heard)} ranks have stood still in phase {phase} of step {step} for {age_s:.0f} s"
    return "; ".join(_sentence(rank, heard[rank], beat_s) for rank in ranks)


def _sentence(rank: int, one: Heard, beat_s: float) -> str:
    beat = one.beat
    if _is_silent(one, beat_s):
        why = "stopped, its node gone, or in a call that keeps Python's lock"
        return (
            f"Rank {rank} has given no sign of life for {one.ago_s:.0f} s, last in phase {beat.phase} of step "
            f"{beat.step} ({why})"
        )
    return (
        f"Rank {rank} has stood still for {one.age_s:.0f} s in phase {beat.phase} of step {beat.step}, at {beat.where} "
        f"(limit {beat.limit_s:.0f} s)"
    )


def table(heard: Mapping[int, Heard]) -> list[str]:
    """Return a line for every rank: where it is, and for how long."""
    return [
        f"rank {rank}: {one.beat.phase}, step {one.beat.step}, place {one.beat.entry}.{one.beat.mark}, "
        f"{one.age_s:.1f} s, heard {one.ago_s:.1f} s ago, {'in a collective ' if one.beat.waits else ''}"
        f"at {one.beat.where}"
        for rank, one in sorted(heard.items())
    ]


def _is_silent(one: Heard, beat_s: float) -> bool:
    return one.ago_s > SILENT_BEATS * beat_s
