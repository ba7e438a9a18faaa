"""Units of several pieces: never cut, never apart, counted in every pack, and shared out evenly over ranks."""

from __future__ import annotations

from collections import Counter
from dataclasses import astuple
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.units import batch_of, options_of, random_units, write_units
from trainer.data.pack.collate import collate
from trainer.data.pack.pack import best_fit
from trainer.data.pack.refs import FILLER, PackRef, read_batch
from trainer.data.store.pack_arrays import digest_of_pack
from trainer.data.store.spool import Spool
from trainer.data.store.store import UNIT_PIECES, open_store
from trainer.data.types import Pack, Unit
from trainer.dist.mesh import Axis
from trainer.errors import DataError
from trainer.mix.deal import deal
from trainer.mix.loader import TrainLoader
from trainer.mix.plan import DataPlan, Pool

SEQ_LEN = 16
PAIRS, GROUPS = (Unit.pair, 2), (Unit.group, 4)


def lay_out(units: list[list[int]], seq_len: int = SEQ_LEN):
    return best_fit(
        np.array([length for unit in units for length in unit], dtype=np.int32),
        seq_len,
        np.array([len(unit) for unit in units], dtype=np.int32),
    )


# ---- the packer


def test_pairs_are_packed_by_their_whole_length() -> None:
    """Of 5, 8, 2 and 5 tokens: the first and the last fill a pack of 10, and the other two do."""
    layout = lay_out([[3, 2], [4, 4], [1, 1], [2, 3]], 10)
    assert layout.piece_start.tolist() == [0, 3, 15, 17, 5, 9, 13, 14]
    assert layout.piece_len.tolist() == [3, 2, 2, 3, 4, 4, 1, 1]
    assert layout.pack_offset.tolist() == [0, 4, 8]
    assert layout.unit_pieces.tolist() == [2, 2, 2, 2] and layout.unit_offset().tolist() == [0, 2, 4]


def test_groups_of_different_size_are_packed_by_their_whole_length() -> None:
    """Of 4, 8 and 6 tokens: the first and the last share a pack of 10."""
    layout = lay_out([[1, 1, 1, 1], [2, 2, 4], [1, 2, 1, 2]], 10)
    assert layout.piece_start.tolist() == [0, 1, 2, 3, 12, 13, 15, 16, 4, 6, 8]
    assert layout.pack_offset.tolist() == [0, 8, 11]
    assert layout.unit_pieces.tolist() == [4, 4, 3] and layout.unit_offset().tolist() == [0, 2, 3]


fitting = st.lists(st.lists(st.integers(1, SEQ_LEN // 4), min_size=1, max_size=4), max_size=40)
pairs = st.lists(st.lists(st.integers(1, SEQ_LEN // 2), min_size=2, max_size=2), max_size=40)
groups = st.lists(st.lists(st.integers(1, SEQ_LEN // 4), min_size=4, max_size=4), max_size=40)


@given(st.one_of(fitting, pairs, groups))
def test_no_unit_is_cut_and_no_piece_is_lost_repeated_or_apart_from_its_own(units: list[list[int]]) -> None:
    layout = lay_out(units)
    starts = np.cumsum([0, *(length for unit in units for length in unit)])[:-1].tolist()
    wanted, first = {}, 0
    for unit in units:
        wanted[starts[first]] = [(start, n) for start, n in zip(starts[first:], unit, strict=False)]
        first += len(unit)
    pieces = list(zip(layout.piece_start.tolist(), layout.piece_len.tolist(), strict=True))
    assert layout.unit_offset()[-1:].tolist() in ([], [len(units)])
    unit_ends = np.cumsum([0, *layout.unit_pieces]).tolist()
    assert set(layout.pack_offset.tolist()) <= set(unit_ends), "a pack ends inside a unit"
    found = [pieces[a:b] for a, b in pairwise(unit_ends)]
    assert {unit[0][0]: unit for unit in found} == wanted and len(found) == len(units)
    for a, b in pairwise(layout.pack_offset.tolist()):
        assert 0 < layout.piece_len[a:b].sum() <= SEQ_LEN


@given(st.lists(st.integers(1, SEQ_LEN), max_size=60))
def test_units_of_one_piece_are_packed_as_documents_are(lengths: list[int]) -> None:
    array = np.array(lengths, dtype=np.int32)
    plain, alone = best_fit(array, SEQ_LEN), best_fit(array, SEQ_LEN, np.ones(len(array), dtype=np.int32))
    for name in ("piece_start", "piece_len", "pack_offset"):
        assert getattr(plain, name).tolist() == getattr(alone, name).tolist()
        assert getattr(plain, name).dtype == getattr(alone, name).dtype
    assert plain.unit_offset().tolist() == alone.unit_offset().tolist()


@given(st.one_of(pairs, groups))
def test_pieces_that_must_stay_together_waste_what_documents_of_their_whole_length_waste(
    units: list[list[int]],
) -> None:
    whole = best_fit(np.array([sum(unit) for unit in units], dtype=np.int32), SEQ_LEN)
    assert lay_out(units).num_packs == whole.num_packs


# ---- the spool and the store


@pytest.mark.parametrize(("unit", "num_pieces"), [PAIRS, GROUPS])
def test_a_store_gives_back_its_units_whole(unit: Unit, num_pieces: int, tmp_path: Path) -> None:
    units = random_units(50, num_pieces, 64, seed=1)
    store = open_store(write_units(tmp_path, [batch_of(units)], options_of(unit)), unit)
    assert store.meta["unit"] == unit.value
    found: list[list[tuple[int, int]]] = []
    for split in (store.train, store.validation):
        assert split.unit is unit
        for index in range(split.num_packs):
            pack = split.pack(index)
            assert pack.unit_pieces == [num_pieces] * int(split.pack_units[index])
            assert sum(pack.unit_pieces) == len(pack.lengths)
            firsts = np.cumsum([0, *pack.lengths])[:-1]
            pieces = list(zip(pack.tokens[firsts].tolist(), pack.lengths, strict=True))
            found += [pieces[i : i + num_pieces] for i in range(0, len(pieces), num_pieces)]
    assert store.train.pack_units.sum() + store.validation.pack_units.sum() == 50
    number = 0
    wanted = []
    for unit_lengths in units:
        wanted.append([(number + i + 1, length) for i, length in enumerate(unit_lengths)])
        number += num_pieces
    assert sorted(found) == wanted
    counted = [store.meta["splits"][name]["num_documents"] for name in ("train", "validation")]
    assert sum(counted) == 50 and min(counted) > 0


def test_a_unit_longer_than_a_pack_is_dropped_whole_and_counted(tmp_path: Path) -> None:
    """Each piece would fit by itself; the first pair has 65 tokens. A document would be refused here."""
    batch = batch_of([[33, 32], [32, 32], [1, 64], [5, 6]])
    store = open_store(write_units(tmp_path, [batch], options_of(Unit.pair)), Unit.pair)
    assert store.meta["counts"] == {"rows": 4, "long_units": 2} and store.meta["longest"] == 65
    tokens = Counter(
        token
        for split in (store.train, store.validation)
        for index in range(split.num_packs)
        for token in split.pack(index).tokens.tolist()
    )
    assert tokens == {3: 32, 4: 32, 7: 5, 8: 6}


def test_a_store_of_other_units_than_asked_for_is_a_sentence(tmp_path: Path) -> None:
    store = write_units(tmp_path, [batch_of(random_units(20, 2, 64, 0))], options_of(Unit.pair))
    with pytest.raises(DataError) as caught:
        open_store(store)
    assert str(caught.value) == (
        f"The token store {store} must keep units of the kind document whole, but keeps those of the kind pair "
        "instead. Run `palimpsest prepare` again."
    )
    assert open_store(store, Unit.pair).train.num_packs


def test_how_pieces_make_units_is_part_of_a_packs_digest(tmp_path: Path) -> None:
    """Two pairs and one group of four hold the same pieces: a ledger must tell them apart."""
    units = [[3, 4], [5, 6], [2, 2], [7, 1]]
    as_pairs = open_store(write_units(tmp_path, [batch_of(units)], options_of(Unit.pair)), Unit.pair)
    tokens, marks = np.arange(7), np.ones(7, dtype=np.uint8)
    digests = [digest_of_pack(tokens, marks, [3, 1, 1, 2], units) for units in (None, [2, 2], [4], [1, 3])]
    assert len(set(digests)) == 4
    split = as_pairs.train
    for index in range(split.num_packs):
        assert digest_of_pack(*astuple(split.pack(index))) == split.pack_digest(index)


def test_stores_of_documents_have_no_array_of_units(tmp_path: Path) -> None:
    store = write_units(tmp_path, [batch_of([[5], [6], [40], [30]])], options_of(Unit.document))
    assert not list(store.rglob(UNIT_PIECES))
    split = open_store(store).train
    assert split.pack_units.sum() == split.num_pieces and split.pack(0).unit_pieces is None


def test_batches_cut_anywhere_make_the_same_store(tmp_path: Path) -> None:
    units = random_units(40, 4, 64, seed=3)
    whole = batch_of(units)
    halves = [whole.only(np.arange(40) < 13), whole.only(np.arange(40) >= 13)]
    digests = []
    for name, batches in (("one", [whole]), ("two", halves)):
        store = write_units(tmp_path / name, batches, options_of(Unit.group))
        digests.append({f: a["sha256"] for f, a in open_store(store, Unit.group).meta["arrays"].items()})
    assert digests[0] == digests[1]


def test_the_spool_reads_whole_units_however_small_its_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = batch_of(random_units(30, 2, 64, seed=4))
    wanted = np.arange(30) % 3 == 0
    monkeypatch.setattr("trainer.data.store.spool.COPY_TOKENS", 7)
    spool = Spool(tmp_path)
    spool.add(batch)
    found = np.concatenate([block.tokens for block in spool.read(wanted)])
    spool.delete()
    assert found.tolist() == batch.only(wanted).tokens.tolist() and not list(tmp_path.iterdir())


# ---- micro-batches


def pack_of(lengths: list[int], unit_pieces: list[int] | None) -> Pack:
    total = sum(lengths)
    return Pack(np.arange(total), np.ones(total, dtype=np.bool_), lengths, unit_pieces)


def test_a_micro_batch_says_which_unit_each_segment_belongs_to() -> None:
    packs = [pack_of([2, 1, 3, 1], [2, 2]), pack_of([4, 4], [2]), pack_of([3, 2], None)]
    micro = collate(packs, [0, 0, 1], 8, 0)
    assert micro.cu_seq_lens.tolist() == [0, 2, 3, 6, 7, 8, 12, 16, 19, 21, 24]
    assert micro.units_S.tolist() == [0, 0, 1, 1, -1, 2, 2, 3, 4, -1]
    assert micro.num_units == 5 and micro.units_S.dtype == np.int64


def test_rows_that_fill_a_batch_up_hold_no_units(tmp_path: Path) -> None:
    split = open_store(
        write_units(tmp_path, [batch_of(random_units(30, 2, 64, 5))], options_of(Unit.pair)), Unit.pair
    ).train
    micro = read_batch([split], [PackRef(0, 1, 0), FILLER], 0)
    num_pieces = len(split.pack(1).lengths)
    rows = micro.cu_seq_lens[:-1] // 64
    assert micro.num_units == int(split.pack_units[1])
    assert (micro.units_S[rows == 1] == -1).all() and (micro.units_S[:num_pieces] >= 0).all()


# ---- over ranks


def test_packs_are_dealt_so_that_units_are_even() -> None:
    """9 and 1, 5 and 4 are ten and nine; as they come it would be 14 and 5."""
    assert deal([9, 5, 4, 1], 2) == [[0, 3], [1, 2]]
    assert deal([1, 1, 1, 1], 2) == [[0, 2], [1, 3]]
    assert deal([3, 1], 1) == [[0, 1]] and deal([], 2) == [[], []]


@given(st.integers(1, 6), st.integers(1, 6), st.data())
def test_no_two_ranks_differ_by_more_than_packs_of_one_round_do(
    num_ranks: int, num_rounds: int, data: st.DataObject
) -> None:
    size = num_ranks * num_rounds
    units = data.draw(st.lists(st.integers(0, 30), min_size=size, max_size=size))
    hands = deal(units, num_ranks)
    assert sorted(pack for hand in hands for pack in hand) == list(range(size))
    assert all(len(hand) == num_rounds and hand == sorted(hand) for hand in hands)
    sums = [sum(units[pack] for pack in hand) for hand in hands]
    ordered = sorted(units, reverse=True)
    rounds = [ordered[i : i + num_ranks] for i in range(0, size, num_ranks)]
    assert max(sums) - min(sums) <= max(part[0] - part[-1] for part in rounds)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> list:
    """Training splits of pairs and of documents, as a run with replay reads them."""
    folder = tmp_path_factory.mktemp("mixed")
    rng = np.random.default_rng(7)
    pairs = [rng.integers(1, 33 if i % 3 else 5, 2).tolist() for i in range(160)]
    documents = [[int(n)] for n in rng.integers(1, 65, 90)]
    opened = []
    for name, units, unit in (("p", pairs, Unit.pair), ("d", documents, Unit.document)):
        opened.append(open_store(write_units(folder / name, [batch_of(units)], options_of(unit)), unit).train)
    return opened


def loaders_of(splits: list, world_size: int) -> list[TrainLoader]:
    pools = [
        Pool("new", False, 1.0, [0], [splits[0].pack_targets]),
        Pool("old", True, 1.0, [1], [splits[1].pack_targets]),
    ]
    loaders = []
    for rank in range(world_size):
        plan = DataPlan(pools, 12, 64, lambda step: 0.25, seed=1)
        loaders.append(TrainLoader(["new", "old"], splits, plan, Axis(rank, world_size), 1, 0))
    return loaders


def test_ranks_get_even_units_and_together_what_one_rank_gets(mixed: list) -> None:
    """The digest, the counts and the set of packs of a step know no ranks, though the order within a step does."""
    seen = []
    for world_size in (1, 2, 3, 4):
        loaders = loaders_of(mixed, world_size)
        steps = []
        for step in range(6):
            batches = [loader.read(step) for loader in loaders]
            facts = {(b.digest, b.num_units_global, tuple(b.num_units_by_source.values())) for b in batches}
            assert len(facts) == 1
            micros = [micro for batch in batches for micro in batch.micro_batches]
            rows = sorted((m.source_B[0], *m.tokens_BT[0].tolist()) for m in micros)
            assert sum(m.num_units for m in micros) == batches[0].num_units_global
            by_rank = [[m.num_units for m in batch.micro_batches if m.source_B == [0]] for batch in batches]
            assert sum(map(sum, by_rank)) == batches[0].num_units_by_source["new"]
            most = max(max(counts, default=0) for counts in by_rank)
            sums = [sum(counts) for counts in by_rank]
            assert max(sums) - min(sums) <= most
            assert all(len(batch.micro_batches) == 12 // world_size for batch in batches)
            steps.append((facts.pop(), rows))
        for loader in loaders:
            loader.close()
        seen.append(steps)
    assert seen[0] == seen[1] == seen[2] == seen[3]


def test_documents_alone_come_in_the_order_of_the_plan(mixed: list) -> None:
    documents = mixed[1]
    plans = [
        DataPlan([Pool("d", False, 1.0, [0], [documents.pack_targets])], 8, 64, lambda step: 0.0, seed=2)
        for _ in range(3)
    ]
    refs = plans[2].packs_of_step(3)
    firsts = []
    for rank in range(2):
        loader = TrainLoader(["d"], [documents], plans[rank], Axis(rank, 2), 1, 0)
        firsts += [micro.tokens_BT[0, 0] for micro in loader.read(3).micro_batches]
        loader.close()
    assert firsts == [documents.pack(ref.pack).tokens[0] for ref in refs]
