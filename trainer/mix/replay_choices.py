"""When replay packs are chosen, which of them are scored, and what is kept of it. Pure: knows no model.

Two plans: the one that is read, a step ahead and by another thread, and one that goes after it and is asked where the
pools stand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from trainer.checkpoint.state import TrainState
from trainer.config.many import many
from trainer.config.replay import ReplayConfig
from trainer.data.types import Bools, Int64s
from trainer.errors import DataError
from trainer.mix.plan import Cursor, DataPlan
from trainer.mix.replay_choice import Candidates, Choice, decide_choice

Wanted = Callable[[int, int], Mapping[str, float]]
"""Packs that pools are expected to give from a step on until another, by name of the pool."""


class ReplayChoices:
    """The decisions of a run about which replay packs come first."""

    def __init__(
        self, replay: ReplayConfig, read: DataPlan, after: DataPlan, num_steps: int, wanted: Wanted
    ) -> None:
        """Take the plan that is read and its double."""
        self._replay, self._read, self._after = replay, read, after
        self._num_steps, self._wanted = num_steps, wanted
        self._is_known: dict[str, Bools] = {}
        self._kept: list[Choice] = []

    @property
    def _names(self) -> dict[int, str]:
        return {pool: self._after.pools[pool].name for pool in self._after.chosen_orders}

    def restore(self, state: TrainState) -> None:
        """Go on where a checkpoint stands; the plan that is read stands there already.

        Raises:
            DataError: Its decisions are about packs that there are not.
        """
        self._kept = [Choice(**found) for found in state.choices]
        strange = {choice.pool for choice in self._kept} - set(self._names.values())
        if strange:
            raise DataError(
                f"The checkpoint's choices of replay must be of {', '.join(self._names.values())}, but are of "
                f"{', '.join(sorted(strange))} instead. Resume with the same data.sources."
            )
        for plan in (self._read, self._after):
            plan.choose(self._kept, is_anew=True)
        if state.plan:
            self._after.go_to(Cursor(**state.plan))

    def is_due(self, state: TrainState) -> bool:
        """Tell whether packs are to be chosen now, and were not.

        What is chosen begins with the step after the next, because the next one is being read already.
        """
        step = state.step
        is_made = bool(state.choices) and state.choices[-1]["step"] == step
        return (
            step > 0 and step % self._replay.choice_every == 0 and step + 1 < self._num_steps and not is_made
        )

    def to_know(self, most: Mapping[str, tuple[float, float]]) -> dict[int, Int64s]:
        """Return the packs whose loss is to be known before the first step, by number of the source.

        Those at the beginning of the permutation that may be candidates, else all: nothing else ever is.

        Args:
            most: Packs that a pool may give in the whole run and between two choices, at the highest ratio.
        """
        found: dict[int, list[int]] = {}
        for pool, order in self._after.chosen_orders.items():
            in_all, at_once = most[self._after.pools[pool].name]
            first = math.ceil(in_all) + self._replay.choice_of * math.ceil(at_once)
            numbers = [order.number_at(position) for position in range(min(first, order.num_packs))]
            is_known = np.zeros(order.num_packs, dtype=np.bool_)
            is_known[numbers] = True
            self._is_known[self._after.pools[pool].name] = is_known
            for number in sorted(numbers):
                ref = order.ref_of(number, 0)
                found.setdefault(ref.source, []).append(ref.pack)
        return {source: np.array(sorted(packs), dtype=np.int64) for source, packs in sorted(found.items())}

    def too_small(self, at_once: Mapping[str, float]) -> list[str]:
        """Return what to say of pools that have fewer packs than shall be scored for a choice.

        Args:
            at_once: Packs that a pool may give between two choices.
        """
        found = []
        for pool, name in self._names.items():
            asked, there = (
                self._replay.choice_of * math.ceil(at_once[name]),
                self._after.pools[pool].num_packs,
            )
            if asked > there:
                found.append(
                    f"replay.choice=losing asks for {asked} candidates at a time, and {name} has "
                    f"{many(there, 'pack')}: all that are left of a pass are candidates. Add documents, or lower "
                    "replay.choice_of or replay.choice_every."
                )
        return found

    def candidates(self, state: TrainState) -> list[Candidates]:
        """Return the packs that are to be scored; of a pool that gives none until the next choice none."""
        first = state.step + 1
        self._after.skip_to(first)
        cursor = self._after.cursor
        wanted = self._wanted(first, min(first + self._replay.choice_every, self._num_steps))
        found = []
        for pool, order in self._after.chosen_orders.items():
            name, position = self._names[pool], cursor.positions[pool]
            num_wanted, left = math.ceil(wanted[name]), order.num_packs - position % order.num_packs
            while (
                num_wanted >= left
            ):  # all that is left of the pass is drawn, so nothing is to be chosen of it
                position, num_wanted, left = position + left, num_wanted - left, order.num_packs
            if not num_wanted:
                continue
            known = self._is_known.get(name)
            numbers = order.undrawn(position, self._replay.choice_of * num_wanted, known)
            refs = [order.ref_of(number, 0) for number in numbers]
            if numbers:
                found.append(Candidates(name, position, num_wanted, numbers, refs))
        return found

    def decide(
        self, state: TrainState, candidates: Sequence[Candidates], rises: Sequence[Sequence[float]]
    ) -> list[Choice]:
        """Choose among candidates, by the rise of each; keep it in the state, and let the plan follow."""
        made = [decide_choice(state.step, *each) for each in zip(candidates, rises, strict=True)]
        num_packs = {name: self._after.pools[pool].num_packs for pool, name in self._names.items()}
        for choice in made:
            before = (at for at in reversed(range(len(self._kept))) if self._kept[at].pool == choice.pool)
            last = next(before, None)
            if last is not None:
                self._kept[last] = self._kept[last].until(choice.begin, num_packs[choice.pool])
                state.choices[last] = self._kept[last].to_plain()
        self._kept += made
        state.choices += [choice.to_plain() for choice in made]
        for plan in (self._read, self._after):
            plan.choose(self._kept)
        return made
