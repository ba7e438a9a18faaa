"""What a run draws from: pools of packs, the replay ratio of every step, and how long the run is.

Joins the data room's plan with the replay room's ratio, which do not know each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table

from trainer.checkpoint.state import TrainState
from trainer.config.data import DataConfig, Role, SourceConfig
from trainer.config.many import many
from trainer.config.replay import RatioController, ReplayChoice, ReplayConfig
from trainer.config.train import TrainConfig
from trainer.data.store.store import Store
from trainer.data.types import Int64s
from trainer.errors import DataError
from trainer.mix.controller import Decision, decide
from trainer.mix.plan import Cursor, DataPlan, Pool, RatioOfStep, num_steps
from trainer.mix.ratio import UNLIKE, mean_ratio, ratio_at, starting_ratio, unlike_asked
from trainer.mix.replay_choices import ReplayChoices

STEPS_A_PASS = 8
"""Steps that a pass over little data is to have at least, so that the rate has a course."""


MOST_PLANNED = 1_000_000
"""Packs of a run that is planned to its end before it begins, which takes a second."""
LOOKS = 1000
"""Places of a run at which a schedule is looked at for its highest ratio."""


@dataclass(frozen=True, slots=True)
class Passes:
    """How often a run passes over a pool, foreseen from the shares and the mean size of packs."""

    pool: Pool
    share: float
    """Share of all supervised tokens."""
    targets: float
    epochs: float


class Mixing:
    """The plan of a run and the ratio it asks for."""

    def __init__(
        self,
        data: DataConfig,
        replay: ReplayConfig,
        train: TrainConfig,
        seed: int,
        stores: Mapping[str, Store],
        packs_per_step: int,
    ) -> None:
        """Lay out the run.

        Raises:
            DataError: Nothing to train on, or a source would be passed over more often than allowed.
        """
        self.replay = replay
        sources = data.sources
        weights = {role: [s.weight for s in sources.values() if s.role is role] for role in Role}
        self.ratio = starting_ratio(replay, weights[Role.target], weights[Role.replay])
        self._changes: list[list[float]] = []
        pools = [*_pools(sources, stores, Role.target), *_pools(sources, stores, Role.replay)]

        chooses = replay.choice is ReplayChoice.losing

        def plan_with(ratio_of_step: RatioOfStep) -> DataPlan:
            return DataPlan(pools, packs_per_step, data.seq_len, ratio_of_step, seed, data.shuffle, chooses)

        self._plan_with = plan_with
        self.plan = plan_with(self.ratio_of_step)
        self.mean_ratio = mean_ratio(replay, self.ratio) if self.has_replay else 0.0
        self.num_steps = num_steps(
            sum(pool.num_packs for pool in self.plan.pools if not pool.is_replay),
            packs_per_step,
            _mean_positions(sources, stores, data.seq_len),
            train.max_steps,
            train.max_epochs,
            train.max_tokens,
            self.mean_ratio if replay.additive else 0.0,
        )
        self._replay_names = [name for name, s in sources.items() if s.role is Role.replay]
        self.watch = _watched(data, replay)
        self.sources = sources
        self._names = list(sources)
        self._num_targets = [max(pool.num_targets, 1) for pool in self.plan.pools]
        self._refuse_repetition()
        self.choices: ReplayChoices | None = None
        """None: replay comes in the order of its permutation."""
        if chooses and self.has_replay:
            double = plan_with(self.ratio_of_step)
            self.choices = ReplayChoices(replay, self.plan, double, self.num_steps, self._packs_between)

    @property
    def has_replay(self) -> bool:
        """Tell whether any pack is replay."""
        return any(pool.is_replay for pool in self.plan.pools)

    def ratio_of_step(self, step: int) -> float:
        """Return the ratio of a zero-based step: the controller's newest decision, else the schedule's."""
        decided = [ratio for first, ratio in self._changes if first <= step]
        return decided[-1] if decided else ratio_at(self.replay, self.ratio, step / self.num_steps)

    def restore(self, state: TrainState) -> None:
        """Go on where a checkpoint stands.

        Raises:
            DataError: It has no place in the data, or one of other sources.
        """
        if state.step and not state.plan:
            raise DataError(
                f"The state of step {state.step} must say where in the data it stands, but does not. Bring the "
                "checkpoint back from its source, or go on from another."
            )
        self._changes = state.ratio_changes
        if state.plan:
            self.plan.go_to(Cursor(**state.plan))
        if self.choices is not None:
            self.choices.restore(state)

    def steer(self, state: TrainState, kl: float | None = None) -> Decision | None:
        """Let the controller answer to the newest held-out losses; None if it is off or has no base yet.

        Its decision begins with the step after the next, because the next one is being read already.

        Args:
            kl: To the base on the fixed conversations, in nats.
        """
        if self.replay.controller is RatioController.none or state.step == 0 or not self.has_replay:
            return None
        previous = self.ratio_of_step(state.step)
        decision = decide(self.replay, previous, state.last_losses, state.base_losses, self.watch, kl)
        state.ratio_changes.append([state.step + 1, decision.ratio])
        self._changes = state.ratio_changes
        return decision

    def replay_to_draw(self) -> dict[int, Int64s]:
        """Return the replay packs that the run can draw, by number of the source, whatever its controller decides.

        Those of the highest ratio: each role's packs come in an order of their own, so where two plans have
        drawn the same, the one with the higher ratio asks for replay whenever the other does; it is never behind.

        With replay.choice=losing they may be any of their pools.

        Raises:
            DataError: There are none.
        """
        holds = self.replay.controller is RatioController.hold
        floor = self.replay.max_ratio if holds else 0.0
        plan = self._plan_with(
            lambda step: max(floor, ratio_at(self.replay, self.ratio, step / self.num_steps))
        )
        plan.skip_to(self.num_steps)
        replay = [i for i, source in enumerate(self.sources.values()) if source.role is Role.replay]
        drawn = {source: packs for source, packs in plan.drawn(replay).items() if len(packs)}
        if self.choices is not None and drawn:
            drawn = self._all_of(replay)
        if not drawn:
            raise DataError(
                f"`replay.kl.beta` must be 0 for a run that draws no replay, but is {self.replay.kl.beta:g} instead. "
                "Raise replay.ratio or set replay.kl.beta=0."
            )
        return drawn

    def to_draw(self, sources: Sequence[int]) -> dict[int, Int64s]:
        """Return the packs that the run can draw of sources, by their number; all where a controller decides."""
        if self.replay.controller is not RatioController.none:
            return self._all_of(sources)
        plan = self._plan_with(lambda step: ratio_at(self.replay, self.ratio, step / self.num_steps))
        plan.skip_to(self.num_steps)
        return {source: packs for source, packs in plan.drawn(sources).items() if source in sources}

    def _all_of(self, sources: Sequence[int]) -> dict[int, Int64s]:
        """Return all packs of those sources that are in a pool, by their number."""
        pools = [pool for pool in self.plan.pools if not set(sources).isdisjoint(pool.sources)]
        sizes = {i: len(t) for pool in pools for i, t in zip(pool.sources, pool.targets, strict=True)}
        return {source: np.arange(sizes[source]) for source in sources if source in sizes}

    def to_score(self) -> tuple[dict[int, Int64s], list[str]]:
        """Return the replay packs whose loss is to be known before the first step, to choose by its rise.

        And what to say of pools that are small for that.
        """
        assert self.choices is not None, "replay is chosen"
        every = min(self.replay.choice_every, self.num_steps)
        most = self.most_ratio
        in_all, at_once = (
            {row.pool.name: row.epochs * row.pool.num_packs for row in self.passes(most, steps)}
            for steps in (self.num_steps, every)
        )
        packs = self.choices.to_know({name: (in_all[name], at_once[name]) for name in in_all})
        return packs, self.choices.too_small(at_once)

    @property
    def most_ratio(self) -> float:
        """Return the highest ratio that a step may have."""
        if self.replay.controller is RatioController.hold:
            return max(self.replay.max_ratio, self.ratio)
        return max(ratio_at(self.replay, self.ratio, step / LOOKS) for step in range(LOOKS))

    def _packs_between(self, first: int, stop: int) -> dict[str, float]:
        """Return the packs that each pool is expected to give from a step on until another."""
        ratio = sum(map(self.ratio_of_step, range(first, stop))) / (stop - first)
        return {row.pool.name: row.epochs * row.pool.num_packs for row in self.passes(ratio, stop - first)}

    def passes(self, ratio: float, num_steps: int | None = None) -> list[Passes]:
        """Foresee how often each pool is passed over at a mean replay ratio, in the run or in so many steps."""
        pools = self.plan.pools
        total = {role: sum(p.weight for p in pools if p.is_replay is role) for role in (False, True)}
        part = {False: 1.0 - (ratio if self.has_replay else 0.0), True: ratio}
        shares = [part[pool.is_replay] * pool.weight / total[pool.is_replay] for pool in pools]
        packs = (self.num_steps if num_steps is None else num_steps) * self.plan.packs_per_step
        sizes = self._num_targets
        per_target = sum(
            share * pool.num_packs / size for share, pool, size in zip(shares, pools, sizes, strict=True)
        )
        return [
            Passes(pool, share, share * packs / per_target, share * packs / per_target / size)
            for share, pool, size in zip(shares, pools, sizes, strict=True)
        ]

    def table(self) -> Table:
        """Return what the run will draw, a row a pool: as it is planned, or about where that is long or not known."""
        is_known = (
            self.replay.controller is RatioController.none
            and self.num_steps * self.plan.packs_per_step <= MOST_PLANNED
        )
        title = f"Mixture over {many(self.num_steps, 'step')}{'' if is_known else ', about'}"
        table = Table(title=title, title_justify="left")
        for column in ("sources", "role"):
            table.add_column(column, overflow="fold")
        for column in ("share", "supervised tokens", "passes"):
            table.add_column(column, justify="right")
        rows = self.passes(self.mean_ratio)
        for row, asked in zip(self._planned(rows) if is_known else rows, rows, strict=True):
            role = Role.replay if row.pool.is_replay else Role.target
            share = f"{row.share:.1%}"
            if abs(row.share - asked.share) >= UNLIKE:
                share += f" ({asked.share:.1%} asked)"
                why = unlike_asked(self.num_steps * self.plan.packs_per_step)
                table.caption, table.caption_justify = why, "left"
            table.add_row(row.pool.name, role.value, share, f"{row.targets:,.0f}", f"{row.epochs:.2f}")
        return table

    def _planned(self, rows: list[Passes]) -> list[Passes]:
        """Return the passes that the plan makes of those that are foreseen: whole packs, of sizes of their own."""
        plan = self._plan_with(lambda step: ratio_at(self.replay, self.ratio, step / self.num_steps))
        plan.skip_to(self.num_steps)
        targets, positions = plan.targets_drawn(), plan.cursor.positions
        total = max(sum(targets), 1)
        return [
            Passes(row.pool, drawn / total, drawn, position / row.pool.num_packs)
            for row, drawn, position in zip(rows, targets, positions, strict=True)
        ]

    def too_large_a_step(self, train: TrainConfig, num_ranks: int) -> str | None:
        """Return what to say of a step that passes more than once over the new data; None where none does."""
        num_packs = sum(pool.num_packs for pool in self.plan.pools if not pool.is_replay)
        share = 1.0 - (self.mean_ratio if self.has_replay else 0.0)
        a_step = share * self.plan.packs_per_step / num_packs
        in_all = self.num_steps * a_step
        asked = train.max_epochs
        if a_step <= 1 and (asked is None or in_all < 2 * asked):
            return None
        unit = num_ranks * train.micro_batch_size
        packs = max(num_packs // (STEPS_A_PASS * unit), 1) * unit
        fitting = packs * train.global_batch_tokens // self.plan.packs_per_step
        fix = f"Set train.global_batch_tokens={fitting}, or add data"
        if fitting >= train.global_batch_tokens:
            fix = f"No step of {many(num_ranks, 'rank')} is smaller: take fewer ranks, or add data"
        instead = "" if asked is None else f" instead of train.max_epochs={asked:g}"
        return (
            f"`train.global_batch_tokens` is {train.global_batch_tokens}, and a step of so many tokens passes "
            f"{a_step:.3g} times over the {many(num_packs, 'pack')} that there are to learn from: {in_all:.3g} passes "
            f"in {many(self.num_steps, 'step')}{instead}. {fix}; "
            "`palimpsest init model=... data=...` writes an experiment whose sizes fit the data."
        )

    def epochs_by_source(self, state: TrainState) -> dict[str, float]:
        """Return packs drawn a pack there is."""
        epochs = {}
        for pool, drawn in zip(self.plan.pools, state.plan.get("positions", []), strict=False):
            for source in pool.sources:
                epochs[self._names[source]] = round(drawn / pool.num_packs, 4)
        return epochs

    @property
    def trained_sources(self) -> dict[str, SourceConfig]:
        """Return the sources that the run draws from, by name."""
        return {name: source for name, source in self.sources.items() if source.role is not Role.probe}

    def share_reached(self, state: TrainState) -> float:
        """Return the share of replay in all supervised tokens so far."""
        replayed = sum(state.targets_by_source.get(name, 0) for name in self._replay_names)
        return replayed / max(sum(state.targets_by_source.values()), 1)

    def _refuse_repetition(self) -> None:
        most = self.replay.max_ratio if self.replay.controller is RatioController.hold else self.mean_ratio
        foreseen = [row for row in self.passes(self.mean_ratio) if not row.pool.is_replay]
        foreseen += [row for row in self.passes(most) if row.pool.is_replay]
        for row in foreseen:
            slack = 1.0 / row.pool.num_packs  # whole packs
            for name in (self._names[source] for source in row.pool.sources):
                allowed = self.sources[name].max_epochs
                if allowed is not None and row.epochs > allowed + slack:
                    raise DataError(
                        f"`data.sources.{name}.max_epochs` must be at least {row.epochs:.2f} for this run, which "
                        f"draws {row.targets:,.0f} supervised tokens from {row.pool.num_targets:,}, but is "
                        f"{allowed:g} instead. Add documents, shorten the run, lower its share or raise it."
                    )


def _pools(sources: Mapping[str, SourceConfig], stores: Mapping[str, Store], role: Role) -> list[Pool]:
    """Return the pools of a role: one each for sources with weights, else all as one."""
    numbers = [i for i, source in enumerate(sources.values()) if source.role is role]
    names = list(sources)
    targets = [store.train.pack_targets for store in stores.values()]
    weighted = [i for i in numbers if sources[names[i]].weight is not None]
    if not weighted:
        return [_pool(names, numbers, targets, role, 1.0)] if numbers else []
    return [_pool(names, [i], targets, role, sources[names[i]].weight or 0.0) for i in weighted]


def _pool(names: list[str], numbers: Sequence[int], targets: list[Any], role: Role, weight: float) -> Pool:
    label = "+".join(names[i] for i in numbers)
    return Pool(label, role is Role.replay, weight, numbers, [targets[i] for i in numbers])


def _mean_positions(sources: Mapping[str, SourceConfig], stores: Mapping[str, Store], seq_len: int) -> float:
    """Return the positions that a model computes of a pack that is trained on, padding among them."""
    found = [
        store.train.pack_positions for name, store in stores.items() if sources[name].role is not Role.probe
    ]
    num_packs = sum(map(len, found))
    return sum(int(each.sum(dtype=np.int64)) for each in found) / num_packs if num_packs else float(seq_len)


def _watched(data: DataConfig, replay: ReplayConfig) -> list[str]:
    if replay.watch:
        return list(replay.watch)
    by_role = {role: [n for n, s in data.sources.items() if s.role is role] for role in Role}
    return by_role[Role.probe] or by_role[Role.replay]
