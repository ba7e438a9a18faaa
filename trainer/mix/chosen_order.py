"""The order of a pool's packs in which decisions put some before others: each pass still holds every pack once."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from trainer.data.pack.refs import PackRef
from trainer.data.types import Bools
from trainer.errors import DataError
from trainer.mix.order import PoolOrder
from trainer.mix.replay_choice import Choice


class ChosenOrder(PoolOrder):
    """A permutation that decisions change from where they begin.

    What was drawn before a decision does not depend on it, so one may be added while another thread
    draws earlier packs.
    """

    _choices: tuple[Sequence[int], Sequence[Choice]] = ((), ())
    """Where they begin, ascending, and they themselves: one attribute, so that no thread sees half of a change."""
    _passes: Mapping[int, _Pass] = MappingProxyType({})

    def choose(self, choices: Sequence[Choice], is_anew: bool) -> None:
        """Take all decisions so far, in their order.

        Args:
            is_anew: They are others than before, and not the same with one more.
        Raises:
            DataError: They name packs that the pool does not hold.
        """
        for choice in choices if is_anew else choices[-1:]:
            if any(not 0 <= number < self.num_packs for number in choice.packs):
                raise DataError(
                    f"The choice of replay at step {choice.step} must be of packs 0 to {self.num_packs - 1} of "
                    f"{choice.pool}, but names others. Bring the checkpoint "
                    "back from its source, or go on from another."
                )
        if is_anew:
            self._passes = {}
        self._choices = ([choice.begin for choice in choices], list(choices))

    def targets_from(self, position: int) -> list[int]:
        """Return the supervised targets of the pack at a position alone: what comes next may be decided yet."""
        return [self.targets_of(self._number(position))]

    def ref(self, position: int) -> PackRef:
        """Return the pack at a position."""
        return self.ref_of(self._number(position), position // self.num_packs)

    def undrawn(self, position: int, count: int, is_known: Bools | None) -> list[int]:
        """Return the first packs of a pass that are not drawn before a position in it, in the permutation's order.

        Args:
            is_known: By number, which packs may be named; None: all.
        """
        number, place = divmod(position, self.num_packs)
        if place:
            self._number(position - 1)
        return self._pass(number).undrawn(place, count, is_known)

    def _number(self, position: int) -> int:
        number, place = divmod(position, self.num_packs)
        return self._pass(number).at(place, self._newest)

    def _newest(self, position: int) -> Choice | None:
        """Return the last decision that begins at a position or before it."""
        begins, choices = self._choices
        index = bisect_right(begins, position) - 1
        return choices[index] if index >= 0 else None

    def _pass(self, number: int) -> _Pass:
        """Return a pass over the pool; of those before the last one nothing is kept."""
        found = self._passes.get(number)
        if found is None:
            found = _Pass(number * self.num_packs, self.num_packs, self.number_at)
            self._passes = {n: p for n, p in self._passes.items() if n == number - 1} | {number: found}
        return found


class _Pass:
    """Once over all packs of a pool."""

    def __init__(self, start: int, num_packs: int, number_at: Callable[[int], int]) -> None:
        """Begin at a position of the pool, whose permutation `number_at` knows by position."""
        self._start, self._num_packs, self._number_at = start, num_packs, number_at
        self._numbers: list[int] = []
        """Drawn so far, in order."""
        self._is_drawn = np.zeros(num_packs, dtype=np.bool_)
        self._low = 0
        """No pack of the permutation before this place is left."""
        self._choice: Choice | None = None
        self._wanted: Iterator[int] = iter(())

    def at(self, place: int, newest: Callable[[int], Choice | None]) -> int:
        """Return the pack at a place of the pass, drawing up to it."""
        while len(self._numbers) <= place:
            position = self._start + len(self._numbers)
            choice = newest(position)
            if choice is not None and choice.begin < self._start:  # it ended with its pass
                choice = None
            if choice is not self._choice and (choice is None or self._is_another(choice)):
                self._wanted = iter(() if choice is None else choice.packs)
            self._choice = choice
            number = self._next()
            self._is_drawn[number] = True
            self._numbers.append(number)
        return self._numbers[place]

    def undrawn(self, place: int, count: int, is_known: Bools | None) -> list[int]:
        """Return the first packs in the permutation that are not drawn at a place."""
        assert len(self._numbers) == place, "nothing further on is drawn yet"
        found = []
        for at in range(self._low, self._num_packs):
            number = self._number_at(self._start + at)
            if not self._is_drawn[number] and (is_known is None or is_known[number]):
                found.append(number)
                if len(found) == count:
                    break
        return found

    def _is_another(self, choice: Choice) -> bool:
        """Tell a decision from the same one of which only what was drawn is kept."""
        return self._choice is None or choice.begin != self._choice.begin or choice.step != self._choice.step

    def _next(self) -> int:
        for number in self._wanted:
            if not self._is_drawn[number]:
                return number
        while True:
            number = self._number_at(self._start + self._low)
            self._low += 1
            if not self._is_drawn[number]:
                return number
