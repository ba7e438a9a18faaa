"""Read this rank's micro-batches of any optimizer step, one step ahead of the training.

The whole state is the step; ranks, threads and prefetch never change which tokens a step sees.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Protocol

from trainer.data.pack.collate import MicroBatch
from trainer.data.pack.refs import FILLER, PackRef, read_batch
from trainer.data.store.store import SplitStore
from trainer.data.types import Unit
from trainer.dist.mesh import Axis
from trainer.mix.deal import deal
from trainer.mix.plan import Cursor, DataPlan


@dataclass(slots=True)
class StepBatch:
    """The micro-batches of one rank for one optimizer step, and what all ranks see together.

    Units: counts of tokens, targets and units are over all ranks and micro-steps.
    """

    step: int
    micro_batches: list[MicroBatch]
    num_targets_global: int
    num_targets_by_source: dict[str, int]
    num_tokens_by_source: dict[str, int]
    num_tokens_global: int
    """Positions that models compute, padding among them."""
    digest: str
    """Of the tokens, marks and pieces of all packs on all ranks, in order."""
    replay_ratio: float
    """Ratio that the plan was asked for in this step."""
    after: Cursor
    """Where the plan stands after this step."""
    num_units_by_source: dict[str, int] = field(default_factory=dict)
    value_sums_by_source: dict[str, dict[str, float]] = field(default_factory=dict)
    """Sums over supervised targets, by name of the number and source."""
    num_chosen: int = 0
    """Tokens that are predicted in chosen answers and their prompts."""

    @property
    def num_units_global(self) -> int:
        """Return the units of all sources."""
        return sum(self.num_units_by_source.values())

    @property
    def value_sums(self) -> dict[str, float]:
        """Return the sums over the supervised targets of all sources, by name of the number."""
        return {name: math.fsum(sums.values()) for name, sums in self.value_sums_by_source.items()}


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """What a plan says of a step."""

    step: int
    refs: list[PackRef]
    """Packs over all ranks, in order."""
    replay_ratio: float
    after: Cursor


def planned_step(plan: DataPlan, step: int) -> PlannedStep:
    """Return what the plan says of a step; it stands behind it then."""
    refs = plan.packs_of_step(step)
    return PlannedStep(step, refs, plan.ratio(step), plan.cursor)


class StepLoader(Protocol):
    """Training batches by step, as the loop takes them."""

    names: list[str]
    """Of the sources, in their order."""

    def take(self, step: int) -> StepBatch:
        """Return the batch of a step."""

    def forget(self) -> None:
        """Drop what was read ahead: the plan is about to go elsewhere."""

    def close(self) -> None:
        """Let go of threads."""


class StepReader:
    """Reads this rank's share of the packs of a step."""

    def __init__(
        self,
        names: Sequence[str],
        stores: Sequence[SplitStore],
        data: Axis,
        micro_batch_size: int,
        pad_id: int,
        attach: Callable[[MicroBatch, Sequence[PackRef]], object | None] | None = None,
    ) -> None:
        """Take the training splits in the order of `names`, and what reads things that belong to a micro-batch."""
        self.names = list(names)
        self.stores = list(stores)
        assert len({store.values for store in stores}) == 1, "all stores keep the same numbers"
        self._data = data
        self._micro_batch_size = micro_batch_size
        self._pad_id = pad_id
        self._attach = attach

    def read(self, planned: PlannedStep, made: Sequence[SplitStore] | None = None) -> StepBatch:
        """Read the packs of a step.

        Args:
            made: Splits that the packs are of, in place of those on disk.
        """
        refs, stores = planned.refs, self.stores if made is None else made
        mine = self._share(refs, stores)
        size = self._micro_batch_size
        micro_batches = [
            self._read_micro_batch(mine[i : i + size], refs[0], stores) for i in range(0, len(mine), size)
        ]
        targets, tokens, units = (dict.fromkeys(self.names, 0) for _ in range(3))
        for ref in refs:
            name, store = self.names[ref.source], stores[ref.source]
            targets[name] += int(store.pack_targets[ref.pack])
            tokens[name] += int(store.pack_tokens[ref.pack])
            units[name] += int(store.pack_units[ref.pack])
        return StepBatch(
            step=planned.step,
            micro_batches=micro_batches,
            num_targets_global=sum(targets.values()),
            num_targets_by_source=targets,
            num_tokens_by_source=tokens,
            num_tokens_global=sum(int(stores[ref.source].pack_positions[ref.pack]) for ref in refs),
            digest=step_digest(refs, stores),
            replay_ratio=planned.replay_ratio,
            after=planned.after,
            num_units_by_source=units,
            value_sums_by_source=self._sum_values(refs, stores),
            num_chosen=sum(int(stores[ref.source].pack_chosen[ref.pack]) for ref in refs),
        )

    def _sum_values(
        self, refs: Sequence[PackRef], stores: Sequence[SplitStore]
    ) -> dict[str, dict[str, float]]:
        """Sum the numbers of packs by source, each sum rounded once: no order of packs changes it."""
        found: dict[str, dict[str, float]] = {}
        for value in stores[0].values:
            of_source: dict[str, list[float]] = {name: [] for name in self.names}
            for ref in refs:
                sums = stores[ref.source].pack_value_sums[value]
                of_source[self.names[ref.source]].append(float(sums[ref.pack]))
            found[value] = {name: math.fsum(sums) for name, sums in of_source.items()}
        return found

    def _share(self, refs: Sequence[PackRef], stores: Sequence[SplitStore]) -> list[PackRef]:
        """Return this rank's packs: a run of them as they come, or about as many pairs or groups as others get.

        Every rank gets as many; where there are too few, fillers, which come last.
        """
        unit = self._micro_batch_size * self._data.size
        padded = [*refs, *[FILLER] * (-len(refs) % unit)]
        of_refs = [stores[ref.source] for ref in refs]
        if all(store.unit is Unit.document for store in of_refs):
            size = len(padded) // self._data.size
            return padded[self._data.rank * size : (self._data.rank + 1) * size]
        num_units = [0] * len(padded)
        for index, (store, ref) in enumerate(zip(of_refs, refs, strict=True)):
            num_units[index] = 0 if store.unit is Unit.document else int(store.pack_units[ref.pack])
        return [padded[pack] for pack in deal(num_units, self._data.size)[self._data.rank]]

    def _read_micro_batch(
        self, refs: Sequence[PackRef], filler: PackRef, stores: Sequence[SplitStore]
    ) -> MicroBatch:
        micro = read_batch(stores, refs, self._pad_id, filler)
        if self._attach is not None:
            micro.attached = self._attach(micro, [filler if ref is FILLER else ref for ref in refs])
        return micro


class TrainLoader:
    """Training batches by step, read ahead. Implements StepLoader."""

    def __init__(
        self,
        names: Sequence[str],
        stores: Sequence[SplitStore],
        plan: DataPlan,
        data: Axis,
        micro_batch_size: int,
        pad_id: int,
        attach: Callable[[MicroBatch, Sequence[PackRef]], object | None] | None = None,
    ) -> None:
        """Take the training splits in the order of `names`, and what reads things that belong to a micro-batch."""
        self._reader = StepReader(names, stores, data, micro_batch_size, pad_id, attach)
        self.names = self._reader.names
        self._plan = plan
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader")
        self._ahead: tuple[int, Future[StepBatch]] | None = None

    def take(self, step: int) -> StepBatch:
        """Return the batch of a step and start reading the next one.

        After the last step one more is read and never taken; that its replay is unknown to the base is no matter.
        """
        ahead, self._ahead = self._ahead, None
        batch = ahead[1].result() if ahead and ahead[0] == step else self.read(step)
        self._ahead = (step + 1, self._pool.submit(self.read, step + 1))
        return batch

    def forget(self) -> None:
        """Drop what was read ahead: the plan is about to go elsewhere."""
        if self._ahead is not None:
            wait([self._ahead[1]])
            self._ahead = None

    def read(self, step: int) -> StepBatch:
        """Read the batch of a step."""
        return self._reader.read(planned_step(self._plan, step))

    def close(self) -> None:
        """Stop reading ahead."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def step_digest(refs: Sequence[PackRef], stores: Sequence[SplitStore]) -> str:
    """Return a digest of the tokens that a step consumed and of what is supervised in them, for the ledger.

    Every rank knows it of all packs. The rank that reads a pack compares its bytes with it before they are trained on.
    """
    packs = [ref.source.to_bytes(4, "little") + stores[ref.source].pack_digest(ref.pack) for ref in refs]
    return hashlib.sha256(b"".join(packs)).hexdigest()[:32]


def chain_digest(so_far: str, step_digest: str) -> str:
    """Return the digest of everything consumed up to a step."""
    return hashlib.sha256(f"{so_far}{step_digest}".encode()).hexdigest()[:32]
