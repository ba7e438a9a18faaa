"""Deals the packs of a step out to ranks: each gets as many packs, and about as many units. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def deal(num_units: Sequence[int], num_ranks: int) -> list[list[int]]:
    """Return which packs each rank gets, in ascending order; `num_units` holds the units of every pack of a step.

    The packs go out in rounds, those of most units first; in a round the rank with the fewest units so far gets the
    most. Any two ranks then differ by no more than the largest and the smallest pack of some one round.
    """
    assert len(num_units) % num_ranks == 0, "ranks get equally many packs"
    descending = sorted(range(len(num_units)), key=lambda pack: -num_units[pack])
    hands: list[list[int]] = [[] for _ in range(num_ranks)]
    held = [0] * num_ranks
    for first in range(0, len(descending), num_ranks):
        ascending = sorted(range(num_ranks), key=held.__getitem__)
        for rank, pack in zip(ascending, descending[first : first + num_ranks], strict=True):
            hands[rank].append(pack)
            held[rank] += num_units[pack]
    return [sorted(hand) for hand in hands]
