"""The order of a pool's packs: every pack once a pass, random to look at, the same in any chunk."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.pack.refs import PackRef
from trainer.mix import order
from trainer.mix.order import Permutation, PoolOrder


@given(st.integers(1, 3000), st.integers(0, 2**40), st.integers(0, 50))
def test_a_permutation_is_a_bijection(size, seed, epoch):
    assert sorted(Permutation(size, seed, epoch)(np.arange(size))) == list(range(size))


@given(st.integers(1, 10**13), st.integers(0, 2**31), st.data())
def test_images_of_large_ranges_stay_inside_and_apart(size, seed, data):
    permutation = Permutation(size, seed, 0)
    indices = data.draw(st.lists(st.integers(0, size - 1), unique=True, max_size=50))
    images = permutation(np.array(indices, dtype=np.int64)).tolist()
    assert all(0 <= image < size for image in images)
    assert len(set(images)) == len(indices)


def test_seeds_epochs_and_pools_give_other_orders():
    orders = {
        tuple(Permutation(100, seed, epoch, salt)(np.arange(100)))
        for seed in range(5)
        for epoch in range(5)
        for salt in ("a", "b")
    }
    assert len(orders) == 50


def test_an_order_looks_random():
    """Positions and images are uncorrelated, and every tenth of the range is hit alike."""
    size = 10_000
    images = Permutation(size, 1, 0)(np.arange(size))
    assert abs(np.corrcoef(np.arange(size), images)[0, 1]) < 0.05
    counts = np.bincount(images[:2000] * 10 // size, minlength=10)
    assert counts.min() > 150 and counts.max() < 250


def pool_of(num_packs, seed=0, shuffle=True):
    targets = [np.arange(count, dtype=np.int32) + 100 * i for i, count in enumerate(num_packs)]
    return PoolOrder("pool", range(len(num_packs)), targets, seed, shuffle)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=5).filter(any), st.integers(0, 100), st.booleans())
def test_every_pack_comes_once_a_pass(num_packs, seed, shuffle):
    pool = pool_of(num_packs, seed, shuffle)
    total = sum(num_packs)
    everything = {(source, pack) for source, count in enumerate(num_packs) for pack in range(count)}
    for epoch in range(3):
        refs = [pool.ref(epoch * total + index) for index in range(total)]
        assert {ref.epoch for ref in refs} == {epoch}
        assert {(ref.source, ref.pack) for ref in refs} == everything


def test_without_shuffling_packs_come_in_the_order_of_the_sources():
    pool = pool_of([2, 0, 3], shuffle=False)
    assert [pool.ref(i)[:2] for i in range(5)] == [(0, 0), (0, 1), (2, 0), (2, 1), (2, 2)]
    assert pool.ref(5) == PackRef(0, 0, 1)


@given(st.integers(1, 90), st.integers(0, 400), st.integers(1, 64))
def test_the_size_of_a_chunk_changes_nothing(num_packs, position, chunk):
    """A failure: packs are lost or repeated where chunks or passes meet."""
    pool, other = pool_of([num_packs, 7]), pool_of([num_packs, 7])
    other._chunk, other._chunk_start = chunk, -chunk
    assert pool.ref(position) == other.ref(position)
    ahead, others = pool.targets_from(position), other.targets_from(position)
    shared = min(len(ahead), len(others))
    assert shared and ahead[:shared] == others[:shared]
    ref = pool.ref(position)
    assert ahead[0] == ref.pack + 100 * ref.source


def test_chunks_bound_the_memory():
    assert pool_of([10**5])._chunk == order.CHUNK
    assert pool_of([3])._chunk == 16
