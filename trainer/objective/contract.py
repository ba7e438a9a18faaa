"""What an objective is to the rest of a run: parts of a loss, the counts that divide them, and what is reported.

The step, the meter, the journal and the loop know these shapes and no objective. A loss is never a mean of means: a
part is a sum over a micro-batch, and is divided once by a count over all micro-batches and ranks, which is known from
the plan before the step without communication.

Shapes: B packs of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from trainer.data.pack.collate import MicroBatch
from trainer.data.pack.refs import PackRef
from trainer.engine.model_inputs import move
from trainer.engine.policy import Policy
from trainer.metrics.mean import Mean
from trainer.mix.loader import StepBatch


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the loss of one micro-batch."""

    loss_sum: Tensor
    """With a gradient; not divided by anything."""
    per: str
    """Name of the count of the whole step that divides it."""


class Sums:
    """Named sums of a step on this rank, in float64 on its device, so that no micro-batch waits for the host."""

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        """Begin at zero."""
        self._place = {name: place for place, name in enumerate(names)}
        self._sums = torch.zeros(len(names), dtype=torch.float64, device=device)
        self._counts = dict.fromkeys(names, 0.0)

    def add(self, name: str, value: Tensor) -> None:
        """Add a scalar."""
        self._sums[self._place[name]] += value

    def add_rows(self, names_B: Sequence[str], values_B: Tensor) -> None:
        """Add each row's value, float64, to the sum of its name."""
        index_B = move(torch.tensor([self._place[name] for name in names_B]), self._sums.device)
        self._sums.index_add_(0, index_B, values_B)

    def count(self, name: str, number: float) -> None:
        """Add a number that the host knows."""
        self._counts[name] += number

    def to_list(self) -> list[float]:
        """Return the sums in the order of their names. Waits for the device."""
        return [
            found + self._counts[name] for name, found in zip(self._place, self._sums.tolist(), strict=True)
        ]


class Objective(Protocol):
    """What is minimised."""

    @property
    def sum_names(self) -> tuple[str, ...]:
        """Return the names of what `terms` adds up."""

    @property
    def means(self) -> tuple[Mean, ...]:
        """Return what is reported of a step; the first is `loss`. All must be finite for a step to be sound."""

    def counts(self, batch: StepBatch) -> Mapping[str, float]:
        """Return counts of the whole step, over all ranks, that divide parts and means."""

    def attach(self, micro: MicroBatch, refs: Sequence[PackRef]) -> object | None:
        """Read what a micro-batch needs beside its tokens, on the loader's thread, for `MicroBatch.attached`."""

    def begin(self, policy: Policy, batch: StepBatch) -> None:
        """Look at this rank's part of a whole step before its first micro-batch, without a gradient.

        For what a loss needs of all micro-batches and ranks at once. Collective: every rank, every step.
        """

    def warning(self, record: Mapping[str, float]) -> str | None:
        """Look at the means between two log lines, by name, and return a sentence where something is going wrong."""

    def terms(self, policy: Policy, micro: MicroBatch, sums: Sums) -> Sequence[Part]:
        """Run the model on a micro-batch and return the parts of its loss. Collective: every rank, every time."""
