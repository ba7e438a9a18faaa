"""The plan: every pack once an epoch, in an order that knows nothing of ranks."""

import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.loader import TrainLoader, refs_digest
from trainer.data.plan import DataPlan, PackRef, Permutation, num_steps
from trainer.data.types import Pack
from trainer.errors import DataError


@given(st.integers(1, 3000), st.integers(0, 2**40), st.integers(0, 50))
def test_a_permutation_is_a_bijection(size, seed, epoch):
    permutation = Permutation(size, seed, epoch)
    assert sorted(permutation(index) for index in range(size)) == list(range(size))


@given(st.integers(1, 10**13), st.integers(0, 2**31), st.data())
def test_images_of_large_ranges_stay_inside_and_apart(size, seed, data):
    permutation = Permutation(size, seed, 0)
    indices = data.draw(st.lists(st.integers(0, size - 1), unique=True, max_size=50))
    images = [permutation(index) for index in indices]
    assert all(0 <= image < size for image in images)
    assert len(set(images)) == len(indices)


def test_seeds_and_epochs_give_other_orders():
    orders = {
        tuple(Permutation(100, seed, epoch)(i) for i in range(100)) for seed in range(5) for epoch in range(5)
    }
    assert len(orders) == 25


def test_an_order_looks_random():
    """Positions and images are uncorrelated, and every tenth of the range is hit alike."""
    size = 10_000
    images = np.array([Permutation(size, 1, 0)(i) for i in range(size)])
    assert abs(np.corrcoef(np.arange(size), images)[0, 1]) < 0.05
    counts = np.bincount(images[:2000] * 10 // size, minlength=10)
    assert counts.min() > 150 and counts.max() < 250


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=5).filter(any),
    st.integers(1, 16),
    st.integers(0, 100),
    st.booleans(),
)
def test_every_pack_comes_once_an_epoch(num_packs, packs_per_step, seed, shuffle):
    plan = DataPlan(num_packs, packs_per_step, seed, shuffle)
    total = sum(num_packs)
    everything = {(source, pack) for source, count in enumerate(num_packs) for pack in range(count)}
    for epoch in range(3):
        refs = [plan.pack_ref(epoch * total + index) for index in range(total)]
        assert {ref.epoch for ref in refs} == {epoch}
        assert {(ref.source, ref.pack) for ref in refs} == everything
        assert len(refs) == len(everything)


def test_without_shuffling_packs_come_in_the_order_of_the_sources():
    plan = DataPlan([2, 0, 3], 4, 0, shuffle=False)
    assert [(r.source, r.pack, r.epoch) for r in plan.packs_of_step(0)] == [
        (0, 0, 0),
        (0, 1, 0),
        (2, 0, 0),
        (2, 1, 0),
    ]
    assert plan.packs_of_step(1)[:2] == [PackRef(2, 2, 0), PackRef(0, 0, 1)]


class MemoryStore:
    """Packs made on the spot: pack k holds the token k."""

    seq_len = 8

    def __init__(self, num_packs):
        self.num_packs = num_packs
        self.pack_targets = np.full(num_packs, 3, dtype=np.int32)

    def pack(self, index):
        return Pack(np.full(4, index, dtype=np.int64), np.ones(4, dtype=bool), [4])


@pytest.mark.parametrize("micro_batch_size", [1, 2, 3])
def test_no_number_of_ranks_or_micro_batch_changes_what_a_step_consumes(micro_batch_size):
    """A failure: a resumed or compared run on other hardware trains on other data."""
    stores = [MemoryStore(101), MemoryStore(40)]
    seen = set()
    for world_size in (1, 2, 3, 4, 6, 8):
        plan = DataPlan([101, 40], 144, seed=3)
        per_world = []
        for step in (0, 1, 5):
            tokens = []
            for rank in range(world_size):
                loader = TrainLoader(["a", "b"], stores, plan, rank, world_size, micro_batch_size, 0)
                batch = loader.read(step)
                loader.close()
                assert len(batch.micro_batches) * micro_batch_size * world_size == 144
                for micro in batch.micro_batches:
                    tokens += list(zip(micro.source_B, micro.tokens_BT[:, 0].tolist(), strict=True))
                assert batch.num_targets_global == 144 * 3 and batch.num_tokens_global == 144 * 8
            per_world.append((batch.digest, tuple(tokens)))
        seen.add(tuple(per_world))
    assert len(seen) == 1


def test_the_digest_names_packs_in_order():
    one, other = PackRef(0, 1, 0), PackRef(1, 1, 0)
    assert refs_digest([one, other]) != refs_digest([other, one])
    assert refs_digest([PackRef(1, 23, 0)]) != refs_digest([PackRef(12, 3, 0)])


def test_a_plan_of_a_trillion_packs_takes_no_memory():
    tracemalloc.start()
    plan = DataPlan([10**12, 7], 4096, seed=0)
    started = time.perf_counter()
    refs = plan.packs_of_step(10**7)
    elapsed_s = time.perf_counter() - started
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len({(ref.source, ref.pack) for ref in refs}) == 4096
    assert peak_bytes < 2_000_000 and elapsed_s < 5


def test_an_empty_plan_is_refused():
    with pytest.raises(DataError, match="at least one training pack"):
        DataPlan([0, 0], 4, 0)


def test_the_length_of_a_run_comes_from_steps_tokens_or_epochs():
    plan = DataPlan([100], 8, 0)
    assert num_steps(plan, 64, 7, None, None) == 7
    assert num_steps(plan, 64, None, 2.0, None) == 25
    assert num_steps(plan, 64, None, 0.001, None) == 1
    assert num_steps(plan, 64, None, None, 8 * 64 * 10) == 10
    assert num_steps(plan, 64, None, None, 1) == 1
