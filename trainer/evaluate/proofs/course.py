"""The proofs of a run, one after the other: which they are, how far they are, and where they are given up."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trainer.evaluate.proofs.called import BeforePass
from trainer.metrics.long_work import LongWork


@dataclass(frozen=True, slots=True)
class Proof:
    """What is proved, and how much work that is."""

    what: str
    work: int
    """Tokens that go forward through the model; a backward pass counts as two more."""


class Course:
    """Says beforehand what is proved, and where a proof stands that takes long.

    Ranks:
        Every rank goes through the same passes; before each of them all may agree to give up.
    """

    def __init__(
        self,
        proofs: Sequence[Proof],
        heed: Callable[[], None],
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the proofs in their order, what raises on all ranks where one is asked to stop, and who is told."""
        self._proofs = list(proofs)
        self._heed = heed
        self._number = 0
        self._done = 0
        names = [proof.what for proof in proofs]
        listed = f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)
        say(f"Proving the loaded model before it is used: {listed}.")
        self._pace = LongWork(sum(proof.work for proof in proofs), say, clock)

    def begin(self) -> BeforePass:
        """Begin the next proof; return what it calls before each pass, with the work of it."""
        self._done = sum(proof.work for proof in self._proofs[: self._number])
        self._number += 1
        return self._before

    def _before(self, work: int) -> None:
        self._heed()
        what = self._proofs[self._number - 1].what
        self._pace.at(self._done, f"Proof {self._number} of {len(self._proofs)}, {what}")
        self._done += work
