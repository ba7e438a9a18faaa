"""The plan: exact shares at every pack, nothing lost or repeated, and no knowledge of ranks."""

import dataclasses
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.calls import num_calls
from trainer.data.pack.refs import PackRef
from trainer.data.store.pack_arrays import digest_of_pack
from trainer.data.types import Pack, Unit
from trainer.dist.mesh import Axis
from trainer.errors import DataError
from trainer.mix.loader import TrainLoader, step_digest
from trainer.mix.plan import ONE, Cursor, DataPlan, Pool, num_steps

SEQ_LEN = 64
planning = settings(max_examples=25)


def pools_of(targets, replay, weights=None, replay_weights=None):
    """Return a pool a list of targets; the second argument is replay."""
    pools = []
    for is_replay, lists, shares in ((False, targets, weights), (True, replay, replay_weights)):
        for i, values in enumerate(lists):
            number = len(pools)
            weight = 1.0 if shares is None else shares[i]
            pools.append(Pool(f"p{number}", is_replay, weight, [number], [np.array(values, dtype=np.int32)]))
    return pools


def plan_of(pools, packs_per_step=8, ratio=lambda step: 0.1, seed=0, shuffle=True):
    return DataPlan(pools, packs_per_step, SEQ_LEN, ratio, seed, shuffle)


sizes = st.lists(st.integers(0, SEQ_LEN), min_size=1, max_size=30).filter(any)
ratios = st.lists(st.floats(0, 0.99), min_size=1, max_size=12)


@planning
@given(sizes, sizes, ratios, st.integers(1, 9), st.integers(0, 99))
def test_replay_is_within_one_sequence_of_the_ratio_after_every_pack(target, replay, asked, size, seed):
    """Packs of any size, a ratio that changes every step, any batch: the bound is half a sequence."""
    plan = plan_of(pools_of([target], [replay]), size, lambda step: asked[step % len(asked)], seed)
    replayed = wanted = 0.0
    for step in range(25):
        for ref in plan.packs_of_step(step):
            targets = (target, replay)[ref.source][ref.pack]
            replayed += targets * (ref.source == 1)
            wanted += targets * asked[step % len(asked)]
            assert abs(replayed - wanted) <= SEQ_LEN / 2 + 1e-6
        assert plan.cursor.balance == pytest.approx((replayed - wanted) * ONE, abs=1e-5 * ONE)


@planning
@given(st.floats(0.01, 0.5), st.integers(4, 64))
def test_every_batch_has_its_share_as_evenly_as_whole_packs_allow(ratio, packs_per_step):
    plan = plan_of(pools_of([[SEQ_LEN] * 50], [[SEQ_LEN] * 20]), packs_per_step, lambda step: ratio)
    for step in range(20):
        replayed = sum(ref.source == 1 for ref in plan.packs_of_step(step))
        assert abs(replayed - ratio * packs_per_step) <= 1.0 + 1e-6


@planning
@given(
    st.lists(st.floats(0.1, 9), min_size=2, max_size=5),
    st.lists(st.lists(st.integers(1, SEQ_LEN), min_size=1, max_size=9), min_size=5, max_size=5),
)
def test_sources_of_a_role_share_it_by_their_weights(weights, packs):
    """Shares are of supervised tokens: a source of small packs gives more of them."""
    plan = plan_of(pools_of(packs[: len(weights)], [], weights), 4)
    so_far = Counter()
    for step in range(60):
        for ref in plan.packs_of_step(step):
            so_far[ref.source] += packs[ref.source][ref.pack]
            total = sum(so_far.values())
            for source, weight in enumerate(weights):
                off = so_far[source] - weight / sum(weights) * total
                assert abs(off) <= SEQ_LEN * len(weights), (source, off)


def test_a_role_with_weight_zero_in_it_never_draws_that_source():
    plan = plan_of(pools_of([[9], [9]], [], [1.0, 0.0]))
    assert {ref.source for step in range(5) for ref in plan.packs_of_step(step)} == {0}


@planning
@given(sizes, sizes, st.floats(0.05, 0.9), st.integers(1, 16), st.integers(0, 99))
def test_no_pack_is_lost_or_repeated_before_its_pool_is_exhausted(target, replay, ratio, size, seed):
    plan = plan_of(pools_of([target], [replay]), size, lambda step: ratio, seed)
    seen = {0: Counter(), 1: Counter()}
    for step in range(30):
        for ref in plan.packs_of_step(step):
            counts = seen[ref.source]
            assert (
                ref.epoch
                == counts[ref.pack]
                == min(counts.get(i, 0) for i in range(_size(ref, target, replay)))
            )
            counts[ref.pack] += 1


def _size(ref, target, replay):
    return len((target, replay)[ref.source])


@planning
@given(sizes, sizes, ratios, st.integers(1, 9), st.integers(0, 40), st.integers(0, 40))
def test_a_step_is_the_same_however_it_is_reached(target, replay, asked, size, first, second):
    """In sequence, by a jump ahead, after a step back, or from a saved cursor."""

    def ratio(step):
        return asked[step % len(asked)]

    def make():
        return plan_of(pools_of([target], [replay]), size, ratio)

    straight = make()
    steps = [straight.packs_of_step(step) for step in range(42)]
    jumping = make()
    assert jumping.packs_of_step(first) == steps[first]
    assert jumping.packs_of_step(second) == steps[second]
    jumping.skip_to(first)
    resumed = make()
    resumed.go_to(Cursor(**jumping.cursor.to_plain()))
    assert [resumed.packs_of_step(step) for step in range(first, 42)] == steps[first:]


def test_the_order_of_replay_does_not_depend_on_the_target_data():
    replayed = []
    for target in ([SEQ_LEN] * 50, [3, 60] * 9):
        plan = plan_of(pools_of([target], [[SEQ_LEN] * 40]), 16, lambda step: 0.25)
        refs = [ref for step in range(40) for ref in plan.packs_of_step(step)]
        replayed.append([ref.pack for ref in refs if ref.source == 1][:80])
    assert replayed[0] == replayed[1]


class MemoryStore:
    """Packs made on the spot: pack k of source s holds the token 1000 s + k."""

    seq_len = SEQ_LEN
    unit = Unit.document
    values = ()

    def __init__(self, source, targets):
        self.pack_targets = np.array(targets, dtype=np.int32)
        self.pack_tokens = self.pack_targets + 1
        self.num_packs = len(targets)
        self.pack_units = np.ones(self.num_packs, dtype=np.int32)
        self.pack_chosen = np.zeros(self.num_packs, dtype=np.int32)
        self.pack_positions = np.full(self.num_packs, SEQ_LEN, dtype=np.int32)
        self._source = source

    def pack_digest(self, index):
        return digest_of_pack(*dataclasses.astuple(self.pack(index)))

    def pack(self, index):
        length = int(self.pack_tokens[index])
        return Pack(np.full(length, 1000 * self._source + index), np.ones(length, dtype=bool), [length])


STORES = [MemoryStore(0, [SEQ_LEN - 1] * 101), MemoryStore(1, [7, 50, 23] * 13), MemoryStore(2, [63] * 11)]


def planned(change_at=None):
    """Return a plan over all stores whose ratio doubles at a step."""
    pools = pools_of([s.pack_targets for s in STORES[:2]], [STORES[2].pack_targets], [3.0, 1.0])
    return plan_of(pools, 144, lambda step: 0.1 if change_at is None or step < change_at else 0.2, seed=3)


@pytest.mark.parametrize("micro_batch_size", [1, 3])
@pytest.mark.parametrize("change_at", [None, 3])
def test_ranks_accumulation_and_prefetch_never_change_what_a_step_consumes(micro_batch_size, change_at):
    """A failure: a resumed or compared run on other hardware trains on other data. Also when the schedule
    changes in mid-run.
    """
    seen = set()
    for world_size in (1, 2, 3, 4, 8):
        if 144 % (world_size * micro_batch_size):
            continue
        for reads_ahead in (False, True):
            steps = []
            loaders = [
                TrainLoader(
                    ["a", "b", "c"], STORES, planned(change_at), Axis(rank, world_size), micro_batch_size, 0
                )
                for rank in range(world_size)
            ]
            for step in range(6):
                tokens = []
                for loader in loaders:
                    batch = loader.take(step) if reads_ahead else loader.read(step)
                    assert len(batch.micro_batches) * micro_batch_size * world_size == 144
                    for micro in batch.micro_batches:
                        tokens += list(zip(micro.source_B, micro.tokens_BT[:, 0].tolist(), strict=True))
                facts = (batch.digest, batch.num_targets_global, tuple(batch.num_tokens_by_source.values()))
                steps.append((*facts, batch.replay_ratio, tuple(batch.after.positions), tuple(tokens)))
            for loader in loaders:
                loader.close()
            seen.add(tuple(steps))
    assert len(seen) == 1


def test_steps_before_a_change_of_schedule_are_those_without_it():
    plain, changed = planned(), planned(change_at=3)
    assert [plain.packs_of_step(s) for s in range(3)] == [changed.packs_of_step(s) for s in range(3)]
    assert plain.packs_of_step(3) != changed.packs_of_step(3)


class Digests:
    """The digests that a store holds, made up."""

    def __init__(self, *digests):
        self._digests = digests

    def pack_digest(self, index):
        return self._digests[index]


def test_the_digest_of_a_step_names_sources_and_tokens_in_order_and_not_the_numbers_of_packs():
    one, other, again = PackRef(0, 0, 0), PackRef(0, 1, 0), PackRef(0, 2, 5)
    stores = [Digests(b"a" * 16, b"b" * 16, b"a" * 16), Digests(b"a" * 16)]
    assert step_digest([one, other], stores) != step_digest([other, one], stores)
    assert step_digest([one, other], stores) == step_digest([again, other], stores)
    assert step_digest([one], stores) != step_digest([PackRef(1, 0, 0)], stores)


def constant(num_packs, targets):
    """Return the targets of a huge source without the memory for them."""
    return np.broadcast_to(np.int32(targets), (num_packs,))


def planning_cost(num_packs, steps):
    """Plan steps of 512 packs and return the peak bytes."""
    tracemalloc.start()
    pools = [
        Pool("target", False, 1.0, [0], [constant(num_packs, 4095)]),
        Pool("replay", True, 1.0, [1], [constant(num_packs // 50 + 1, 2000)]),
    ]
    plan = DataPlan(pools, 512, 4096, lambda step: 0.05, 0)
    plan.skip_to(steps)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    share = plan.cursor.targets[1] / sum(plan.cursor.targets)
    assert abs(share - 0.05) < 1e-4
    return peak_bytes


def test_a_plan_of_a_trillion_tokens_takes_no_more_memory_than_a_small_one():
    """4,096 tokens a pack: 244 million packs are a trillion tokens."""
    small = planning_cost(num_packs=600_000, steps=60)
    huge = planning_cost(num_packs=244_140_625, steps=60)
    assert huge < 1.2 * small and huge < 4_000_000


@pytest.mark.slow
def test_ten_million_packs_are_planned_with_a_call_or_two_each():
    pools = [
        Pool("target", False, 1.0, [0], [constant(244_140_625, 4095)]),
        Pool("replay", True, 1.0, [1], [constant(1000, 2000)]),
    ]
    plan = DataPlan(pools, 512, 4096, lambda step: 0.05, 0)
    assert num_calls(lambda: plan.skip_to(10**7 // 512)) < 3 * 10**7, "more than a call or two a pack"


def test_one_pool_jumps_anywhere_at_once():
    plan = DataPlan([Pool("all", False, 1.0, [0], [constant(10**12, 9)])], 4096, 64, lambda step: 0.0, 0)
    found = []
    assert num_calls(lambda: found.append(plan.packs_of_step(10**7))) < 200_000, "it went there step by step"
    assert len({ref.pack for ref in found[0]}) == 4096


def test_an_empty_plan_is_refused():
    with pytest.raises(DataError, match="at least one training pack with role=target"):
        plan_of(pools_of([[], []], [[5]]))


def test_a_cursor_of_other_pools_is_refused():
    with pytest.raises(DataError, match="must have 2 pools"):
        plan_of(pools_of([[5]], [[5]])).go_to(Cursor(3, [1], [1], 0))


def test_the_length_of_a_run_comes_from_steps_tokens_or_epochs():
    assert num_steps(100, 8, 64, 7, None, None) == 7
    assert num_steps(100, 8, 64, None, 2.0, None) == 25
    assert num_steps(100, 8, 64, None, 0.001, None) == 1
    assert num_steps(100, 8, 64, None, None, 8 * 64 * 10) == 10
    assert num_steps(100, 8, 64, None, None, 1) == 1
    assert num_steps(100, 8, 64, 75, None, None, added_frac=0.25) == 100
