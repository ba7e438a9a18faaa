"""Which replay packs come before others, and how that is decided from losses. Pure.

A decision is kept as what it chose, so the plan is a function of stores, mixture, seed, step and decisions, and nothing
is scored again to know what a run drew.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainer.data.pack.refs import PackRef

DIGITS = 3
"""Of a rise in nats: losses that other ranks add up, in another order, come to the same choice but at an edge of it."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What was decided about a pool at a step. Packs go by their number in the pool, before any permutation."""

    step: int
    """Optimizer steps that were done."""
    pool: str
    begin: int
    """Position of the pool from which on it holds."""
    packs: list[int]
    """Come first, in this order; of a decision that was followed by another, those that were drawn."""
    num_wanted: int
    """Packs that were expected to be drawn until the next one; the first so many were chosen."""
    num_candidates: int
    rise_chosen: float
    """Mean rise of the loss over the base's, over packs, in nats."""
    rise_candidates: float

    def until(self, position: int, num_packs: int) -> Choice:
        """Return what was drawn of it before a position, where another one begins.

        Args:
            num_packs: Of the pool: a choice ends with the pass it was made in.
        """
        end = min(position, self.begin - self.begin % num_packs + num_packs)
        begin = min(self.begin, position)
        return dataclasses.replace(self, begin=begin, packs=self.packs[: max(end - self.begin, 0)])

    def to_plain(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True)
class Candidates:
    """Packs of a pool that are scored."""

    pool: str
    begin: int
    """Position from which on they may be drawn."""
    num_wanted: int
    numbers: list[int]
    """In the order of the pool's permutation."""
    refs: list[PackRef]
    """The same packs."""


def decide_choice(step: int, found: Candidates, rises: Sequence[float]) -> Choice:
    """Choose the packs whose loss has risen most; of equal ones those of lower numbers.

    The chosen ones come in the order of the permutation, so that only what is at the edge between chosen and not
    depends on small differences; the others, should more be drawn than was expected, by their rise. A rise that is no
    number counts as the largest.
    """
    rounded = [round(rise, DIGITS) if math.isfinite(rise) else math.inf for rise in rises]
    by_rise = sorted(range(len(rounded)), key=lambda i: (-rounded[i], found.numbers[i]))
    chosen = sorted(by_rise[: found.num_wanted])
    return Choice(
        step=step,
        pool=found.pool,
        begin=found.begin,
        packs=[found.numbers[i] for i in (*chosen, *by_rise[found.num_wanted :])],
        num_wanted=found.num_wanted,
        num_candidates=len(rounded),
        rise_chosen=sum(rises[i] for i in chosen) / len(chosen),
        rise_candidates=sum(rises) / len(rises),
    )
