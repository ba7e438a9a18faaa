"""The plan: which packs every optimizer step trains on. A pure function, the same on any number of ranks.

Of stores, mixture, seed and step, and of the decisions of a controller and a choice of replay, which are kept.

Two roles share the run by supervised tokens: after every pack, the replay tokens so far differ from what
the ratio asked for by at most half a sequence, whatever the sizes of packs and however the ratio moves.
Everything is counted in integers, so no machine rounds differently. Memory does not grow with the run.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.pack.refs import PackRef
from trainer.data.types import Int64s
from trainer.errors import DataError
from trainer.mix.chosen_order import ChosenOrder
from trainer.mix.order import PoolOrder
from trainer.mix.replay_choice import Choice

ONE = 10**12
"""Shares are whole parts of this: over a trillion tokens, rounding them moves less than a token."""

RatioOfStep = Callable[[int], float]


@dataclass(frozen=True, slots=True)
class Pool:
    """Sources that are drawn from as one: all of a role without weights, or a single one with its weight."""

    name: str
    is_replay: bool
    weight: float
    """Share of the pool among those of its role; any positive scale."""
    sources: Sequence[int]
    """Numbers of the sources."""
    targets: Sequence[npt.NDArray[np.int32]]
    """Supervised targets of each pack of each source."""

    @property
    def num_packs(self) -> int:
        """Return the packs of one pass."""
        return sum(len(targets) for targets in self.targets)

    @property
    def num_targets(self) -> int:
        """Return the supervised targets of one pass."""
        return sum(int(targets.sum(dtype=np.int64)) for targets in self.targets)


@dataclass(slots=True)
class Cursor:
    """Where the plan stands before a step. All a resumed run needs to go on."""

    step: int = 0
    positions: list[int] = field(default_factory=list)
    """Packs drawn, by pool."""
    targets: list[int] = field(default_factory=list)
    """Supervised targets drawn, by pool."""
    balance: int = 0
    """Replay targets beyond what the ratio asked for so far, in parts of `ONE` of a token."""

    def copy(self) -> Cursor:
        """Return a cursor that does not move with this one."""
        return Cursor(self.step, list(self.positions), list(self.targets), self.balance)

    def to_plain(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return dataclasses.asdict(self)


class DataPlan:
    """Which packs every optimizer step trains on."""

    def __init__(
        self,
        pools: Sequence[Pool],
        packs_per_step: int,
        seq_len: int,
        ratio_of_step: RatioOfStep,
        seed: int,
        shuffle: bool = True,
        chooses: bool = False,
    ) -> None:
        """Take the pools of both roles and the replay ratio of every zero-based step, in [0, 1).

        Args:
            chooses: Decisions put some replay packs before others.
        Raises:
            DataError: No packs to train on.
        """
        self.pools = [pool for pool in pools if pool.num_packs and pool.weight > 0]
        self.packs_per_step = packs_per_step
        self._seq_len = seq_len
        self._ratio_of_step = ratio_of_step
        self._orders = [
            (ChosenOrder if chooses and p.is_replay else PoolOrder)(
                p.name, p.sources, p.targets, seed, shuffle
            )
            for p in self.pools
        ]
        self._roles = [[i for i, p in enumerate(self.pools) if p.is_replay is role] for role in (False, True)]
        if not self._roles[0]:
            raise DataError(
                "`data.sources` must hold at least one training pack with role=target, but hold none instead. "
                "Add documents or lower data.validation_frac."
            )
        self._weights = _in_parts_of_one(self.pools, self._roles)
        self._start = Cursor(0, [0] * len(self.pools), [0] * len(self.pools), 0)
        self._stand_at(self._start)

    @property
    def cursor(self) -> Cursor:
        """Return where the plan stands, after the last step it was asked for."""
        return self._cursor.copy()

    def go_to(self, cursor: Cursor) -> None:
        """Stand where a saved run stood; earlier steps are still planned from the beginning."""
        if len(cursor.positions) != len(self.pools):
            raise DataError(
                f"The checkpoint's plan must have {len(self.pools)} pools of packs, but has "
                f"{len(cursor.positions)} instead. Resume with the same data.sources."
            )
        self._stand_at(cursor)

    @property
    def chosen_orders(self) -> dict[int, ChosenOrder]:
        """Return the orders of pools that decisions change, by number of the pool."""
        return {i: order for i, order in enumerate(self._orders) if isinstance(order, ChosenOrder)}

    def choose(self, choices: Sequence[Choice], is_anew: bool = False) -> None:
        """Take all decisions about replay packs so far, in their order.

        Those of steps that were planned already must be as they were, unless they are taken `is_anew`.

        Raises:
            DataError: They name packs that there are not.
        """
        for pool, order in self.chosen_orders.items():
            order.choose([choice for choice in choices if choice.pool == self.pools[pool].name], is_anew)

    def _stand_at(self, cursor: Cursor) -> None:
        self._cursor = cursor.copy()
        self._ahead: list[Iterator[int]] = [iter(()) for _ in self.pools]
        """Targets of the packs that each pool gives next, as far as they are computed."""

    def ratio(self, step: int) -> float:
        """Return the replay ratio asked for in a step; 0 without replay."""
        return self._ratio_of_step(step) if self._roles[1] else 0.0

    def packs_of_step(self, step: int) -> list[PackRef]:
        """Return the packs of a zero-based optimizer step, over all ranks, in order.

        Steps in sequence cost nothing extra; another one is reached by planning those before it.
        """
        self.skip_to(step)
        drawn: list[tuple[int, int]] = []
        self._advance(drawn)
        return [self._orders[pool].ref(position) for pool, position in drawn]

    def skip_to(self, step: int) -> None:
        """Stand before a step without naming the packs of those in between."""
        if step < self._cursor.step:
            self._stand_at(self._start)
        if len(self.pools) == 1 and self._cursor.step != step:  # nothing to balance
            self._stand_at(Cursor(step, [step * self.packs_per_step], [0], 0))
        while self._cursor.step < step:
            self._advance(None)

    def drawn(self, sources: Collection[int]) -> dict[int, Int64s]:
        """Return the packs of sources drawn before the cursor, each once and in order, by number of the source.

        Where a source shares its pool with others, theirs are there too; one that is in no pool is not.
        """
        drawn: dict[int, Int64s] = {}
        for pool, order, position in zip(self.pools, self._orders, self._cursor.positions, strict=True):
            if not set(sources).isdisjoint(pool.sources):
                refs = {order.ref(at)[:2] for at in range(position)} if position < pool.num_packs else None
                for source, targets in zip(pool.sources, pool.targets, strict=True):
                    packs = range(len(targets)) if refs is None else sorted(p for s, p in refs if s == source)
                    drawn[source] = np.array(packs, dtype=np.int64)
        return drawn

    def targets_drawn(self) -> list[int]:
        """Return the supervised targets drawn before the cursor, by pool."""
        drawn = []
        for pool, order, position in zip(self.pools, self._orders, self._cursor.positions, strict=True):
            passes = position // pool.num_packs
            targets, at = passes * pool.num_targets, passes * pool.num_packs
            while at < position:
                some = order.targets_from(at)[: position - at]
                targets, at = targets + sum(some), at + len(some)
            drawn.append(targets)
        return drawn

    def _advance(self, drawn: list[tuple[int, int]] | None) -> None:
        """Draw the packs of the next step."""
        cursor = self._cursor
        asked = round(self.ratio(cursor.step) * ONE)
        replay_below = self._seq_len * (2 * asked - ONE) if self._roles[1] else -math.inf
        change = (-asked, ONE - asked)
        alone = [role[0] if len(role) == 1 else None for role in self._roles]
        balance, positions, so_far, ahead = cursor.balance, cursor.positions, cursor.targets, self._ahead
        for _ in range(self.packs_per_step):
            is_replay = 2 * balance < replay_below
            pool = alone[is_replay]
            if pool is None:
                pool = self._furthest_behind(is_replay)
            targets = next(ahead[pool], -1)
            if targets < 0:
                ahead[pool] = iter(self._orders[pool].targets_from(positions[pool]))
                targets = next(ahead[pool])
            balance += targets * change[is_replay]
            so_far[pool] += targets
            if drawn is not None:
                drawn.append((pool, positions[pool]))
            positions[pool] += 1
        cursor.balance = balance
        cursor.step += 1

    def _furthest_behind(self, is_replay: bool) -> int:
        """Return the pool of a role that is furthest behind its share of the role's tokens."""
        candidates = self._roles[is_replay]
        if len(candidates) == 1:
            return candidates[0]
        so_far = self._cursor.targets
        after = sum(so_far[i] for i in candidates) + self._seq_len
        return max(candidates, key=lambda i: self._weights[i] * after - ONE * so_far[i])


def _in_parts_of_one(pools: Sequence[Pool], roles: Sequence[Sequence[int]]) -> list[int]:
    weights = [0] * len(pools)
    for role in roles:
        total = sum(pools[i].weight for i in role)
        for i in role:
            weights[i] = round(pools[i].weight / total * ONE)
    return weights


def num_steps(
    target_packs: int,
    packs_per_step: int,
    pack_tokens: float,
    max_steps: int | None,
    max_epochs: float | None,
    max_tokens: int | None,
    added_frac: float = 0.0,
) -> int:
    """Return the optimizer steps of the run from whichever length was given; at least one.

    Epochs are passes over the packs of role=target. `added_frac` is the share of the whole run that comes
    on top (replay.additive); without it replay takes the place of target tokens. `pack_tokens` are those of a pack.
    """
    if max_steps is not None:
        steps = float(max_steps)
    elif max_tokens is not None:
        steps = max_tokens / (packs_per_step * pack_tokens)
    else:
        assert max_epochs is not None
        steps = max_epochs * target_packs / packs_per_step
    return max(round(steps / (1.0 - added_frac)), 1)
