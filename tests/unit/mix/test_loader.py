"""The loader: its whole state is the step."""

import dataclasses

import numpy as np
import pytest

from trainer.data.pack.collate import IGNORE
from trainer.data.store.pack_arrays import digest_of_pack
from trainer.data.types import Pack, Unit
from trainer.dist.mesh import Axis
from trainer.mix.loader import TrainLoader, chain_digest
from trainer.mix.plan import DataPlan, Pool


class MemoryStore:
    """Packs made from a seed, with the counts that a store on disk would hold."""

    seq_len = 16
    unit = Unit.document
    values = ()

    def __init__(self, num_packs, seed):
        rng = np.random.default_rng(seed)
        self.num_packs = num_packs
        self._packs = []
        for _ in range(num_packs):
            length = int(rng.integers(3, 17))
            tokens = rng.integers(0, 99, length)
            self._packs.append(Pack(tokens, rng.random(length) < 0.5, [length]))
        self.pack_tokens = np.array([len(p.tokens) for p in self._packs], dtype=np.int32)
        self.pack_units = np.ones(num_packs, dtype=np.int32)
        self.pack_chosen = np.zeros(num_packs, dtype=np.int32)
        self.pack_positions = np.full(num_packs, 16, dtype=np.int32)
        self.pack_targets = np.array([int(p.supervised[1:].sum()) for p in self._packs], dtype=np.int32)

    def pack(self, index):
        return self._packs[index]

    def pack_digest(self, index):
        return digest_of_pack(*dataclasses.astuple(self._packs[index]))


STORES = [MemoryStore(23, 0), MemoryStore(9, 1)]


@pytest.fixture
def make():
    loaders = []

    def build(rank=0, world_size=2, micro_batch_size=2):
        pool = Pool("all", False, 1.0, [0, 1], [store.pack_targets for store in STORES])
        plan = DataPlan([pool], 8, 16, lambda step: 0.0, seed=1)
        loaders.append(TrainLoader(["a", "b"], STORES, plan, Axis(rank, world_size), micro_batch_size, 0))
        return loaders[-1]

    yield build
    for loader in loaders:
        loader.close()


def same(one, other):
    assert (one.step, one.digest, one.num_targets_global) == (
        other.step,
        other.digest,
        other.num_targets_global,
    )
    assert one.num_targets_by_source == other.num_targets_by_source
    for a, b in zip(one.micro_batches, other.micro_batches, strict=True):
        assert np.array_equal(a.tokens_BT, b.tokens_BT) and np.array_equal(a.labels_BT, b.labels_BT)
        assert a.source_B == b.source_B
    return True


def test_reading_ahead_gives_what_reading_gives(make):
    loader, plain = make(), make()
    for step in range(12):
        assert same(loader.take(step), plain.read(step))


@pytest.mark.parametrize("first", [0, 1, 5, 11])
def test_a_loader_that_starts_at_any_step_sees_what_one_from_the_beginning_sees(make, first):
    from_start, resumed = make(), make()
    seen = {step: from_start.take(step) for step in range(14)}
    for step in range(first, 14):
        assert same(resumed.take(step), seen[step])


def test_a_step_that_was_not_read_ahead_is_read_now(make):
    loader, plain = make(), make()
    for step in (0, 7, 3, 4):
        assert same(loader.take(step), plain.read(step))


def test_ranks_share_a_step_without_overlap_and_count_it_alike(make):
    first, second = make(0).read(4), make(1).read(4)
    assert first.digest == second.digest and first.num_targets_by_source == second.num_targets_by_source
    mine = [sum(micro.num_targets for micro in batch.micro_batches) for batch in (first, second)]
    assert sum(mine) == first.num_targets_global == sum(first.num_targets_by_source.values())
    by_source = {"a": 0, "b": 0}
    for batch in (first, second):
        for micro in batch.micro_batches:
            for source, count in zip(micro.source_B, micro.num_targets_B, strict=True):
                by_source["ab"[source]] += count
    assert by_source == first.num_targets_by_source


@pytest.mark.parametrize(("world_size", "micro_batch_size"), [(3, 1), (5, 1), (3, 2), (8, 3), (16, 1)])
def test_ranks_that_do_not_divide_a_step_get_as_many_micro_batches_and_every_pack_counts_once(
    make, world_size, micro_batch_size
):
    """Eight packs; what fills up is read of the step's own packs and has no target."""
    whole = make(0, 1).read(4)
    shares = [make(rank, world_size, micro_batch_size).read(4) for rank in range(world_size)]
    rounds = -(-8 // (world_size * micro_batch_size))
    targets, tokens = [], set()
    for share in shares:
        assert share.digest == whole.digest and share.num_targets_global == whole.num_targets_global
        assert [len(micro.source_B) for micro in share.micro_batches] == [micro_batch_size] * rounds
        for micro in share.micro_batches:
            targets += [count for count in micro.num_targets_B if count]
            tokens |= {row.tobytes() for row in micro.tokens_BT}
            assert [(row != IGNORE).sum() for row in micro.labels_BT] == micro.num_targets_B
    of_whole = [micro for micro in whole.micro_batches]
    assert sorted(targets) == sorted(count for micro in of_whole for count in micro.num_targets_B if count)
    assert tokens == {row.tobytes() for micro in of_whole for row in micro.tokens_BT}


def test_an_error_of_reading_ahead_comes_with_its_own_step(make, monkeypatch):
    loader = make()
    read = loader.read

    def fails_at_one(step):
        if step == 1:
            raise OSError("gone")
        return read(step)

    monkeypatch.setattr(loader, "read", fails_at_one)
    loader.take(0)
    with pytest.raises(OSError, match="gone"):
        loader.take(1)


def test_the_chained_digest_depends_on_every_step_and_their_order():
    one = chain_digest(chain_digest("", "x"), "y")
    assert one != chain_digest(chain_digest("", "y"), "x")
    assert len(one) == 32
