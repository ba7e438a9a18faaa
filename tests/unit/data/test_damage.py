"""A flipped bit anywhere in a token store is found at first use, and equal ledgers mean equal tokens."""

import dataclasses
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from tests.helpers.tokenizers import make_tokenizer
from tests.helpers.units import batch_of, options_of, random_units, write_units
from trainer.config.data import CleanConfig, ColumnsConfig, DataConfig, Format, Packing, SourceConfig
from trainer.data.pack.refs import PackRef
from trainer.data.prepare import prepare
from trainer.data.store.pack_arrays import SUPERVISED, TOKENS, digest_of_pack, pack_value_file, value_file
from trainer.data.store.store import ARRAYS, DIGESTS, HASHES, META, UNIT_PIECES, open_store
from trainer.data.types import Unit
from trainer.dist.mesh import Axis
from trainer.errors import DataError
from trainer.mix.loader import TrainLoader, step_digest
from trainer.mix.plan import DataPlan, Pool

NUM_OFFSETS = 9
VALUES = ("margin", "weight")


def make_store(folder, num_rows=60, change=None):
    """Prepare a source of ids whose loss masks differ; `change` edits its rows."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(num_rows):
        length = int(rng.integers(5, 40))
        mask = (rng.random(length) < 0.5).astype(int)
        mask[-1] = 1
        rows.append({"input_ids": rng.integers(4, 264, length).tolist(), "m": mask.tolist()})
    if change is not None:
        change(rows)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = SourceConfig(
        path=str(folder / "rows.jsonl"),
        format=Format.ids,
        columns=ColumnsConfig(loss_mask="m"),
        packing=Packing.best_fit,
        clean=CleanConfig(),
    )
    data = DataConfig(
        sources={"s": source}, seq_len=64, validation_frac=0.2, num_workers=1, cache_dir=str(folder / "cache")
    )
    tokenizer = make_tokenizer()
    prepare(data, tokenizer, lambda: tokenizer, None, Console(file=io.StringIO()))
    (store,) = (folder / "cache" / "stores").glob("[!.]*")
    return store


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def kinds(whole, tmp_path_factory):
    """Return a store of each kind of unit; that of pairs has numbers of tokens too."""
    batch = batch_of(random_units(60, 2, 64, seed=0), values=VALUES)
    pairs = write_units(tmp_path_factory.mktemp("pairs"), [batch], options_of(Unit.pair), VALUES)
    return {Unit.document: whole, Unit.pair: pairs}


def read_everything(store, unit=Unit.document):
    opened = open_store(store, unit)
    for split in (opened.train, opened.validation):
        for index in range(split.num_packs):
            split.pack(index)
        split.document_hashes()


ALL = (*ARRAYS, DIGESTS, HASHES, TOKENS, SUPERVISED)
NUMBERS = (name for value in VALUES for name in (value_file(value), pack_value_file(value)))
FILES = {Unit.document: ALL, Unit.pair: (*ALL, UNIT_PIECES, *NUMBERS)}
NAMED = [
    (unit, name)
    for unit, files in FILES.items()
    for name in (META, *(f"{split}/{file}" for split in ("train", "validation") for file in files))
]


@pytest.mark.parametrize("unit", FILES)
def test_these_are_all_files_of_a_store(unit, kinds):
    read_everything(kinds[unit], unit)
    found = {str(path.relative_to(kinds[unit])) for path in kinds[unit].rglob("*") if path.is_file()}
    assert found == {name for other, name in NAMED if other is unit}


@pytest.mark.parametrize(("unit", "name"), NAMED)
def test_one_flipped_bit_of_a_store_is_found_and_named(unit, name, kinds, tmp_path):
    store = shutil.copytree(kinds[unit], tmp_path / kinds[unit].name)
    file = store / name
    original = file.read_bytes()
    for place in np.linspace(0, len(original) - 1, NUM_OFFSETS).astype(int):
        for bit in (0, 5):
            changed = bytearray(original)
            changed[place] ^= 1 << bit
            file.write_bytes(changed)
            with pytest.raises(DataError, match="must be whole") as caught:
                read_everything(store, unit)
            assert str(store) in str(caught.value) and name in str(caught.value)
            assert "Delete that folder and run `palimpsest prepare` again" in str(caught.value)
    file.write_bytes(original)
    read_everything(store, unit)


def test_tokens_and_marks_are_compared_when_their_pack_is_read_and_not_before(whole, tmp_path):
    store = shutil.copytree(whole, tmp_path / whole.name)
    file = store / "train" / TOKENS
    changed = bytearray(file.read_bytes())
    changed[0] ^= 1  # of the first document
    file.write_bytes(changed)
    split = open_store(store).train
    broken = []
    for index in range(split.num_packs):
        try:
            split.pack(index)
        except DataError:
            broken.append(index)
    assert len(broken) == 1
    with pytest.raises(DataError, match="must be whole"):
        split.piece(int(split._arrays.layout.pack_offset[broken[0]]))


def test_a_store_in_the_place_of_another_is_not_taken_for_it(whole, tmp_path):
    store = shutil.copytree(whole, tmp_path / ("0" * 64))
    with pytest.raises(DataError, match=f"it holds the store {whole.name[:12]}"):
        open_store(store)


def test_pieces_are_those_of_their_packs(whole):
    split = open_store(whole).train
    pieces = [split.piece(index) for index in range(split.num_pieces)]
    packs = [split.pack(index) for index in range(split.num_packs)]
    assert [length for pack in packs for length in pack.lengths] == [len(piece.tokens) for piece in pieces]
    assert np.array_equal(
        np.concatenate([p.tokens for p in packs]), np.concatenate([p.tokens for p in pieces])
    )
    assert np.array_equal(
        np.concatenate([p.supervised for p in packs]), np.concatenate([p.supervised for p in pieces])
    )


def test_the_digest_of_a_pack_is_that_of_its_tokens_marks_and_pieces():
    tokens, marks = np.array([1, 2, 3]), np.array([1, 0, 1], dtype=np.uint8)
    packs = [
        (tokens, marks, [3]),
        (np.array([1, 2, 4]), marks, [3]),
        (tokens, np.array([1, 1, 1], dtype=np.uint8), [3]),
        (tokens, marks, [1, 2]),
        (tokens, marks, [2, 1]),
    ]
    assert len({digest_of_pack(*pack) for pack in packs}) == 5
    narrow = digest_of_pack(tokens.astype(np.uint16), marks.astype(bool), [3])
    assert narrow == digest_of_pack(*packs[0]), "a store of a larger vocabulary has another dtype"


def digests(store, world_size, rank=0, steps=5):
    split = open_store(store).train
    plan = DataPlan([Pool("s", False, 1.0, [0], [split.pack_targets])], 4, 64, lambda step: 0.0, seed=1)
    loader = TrainLoader(["s"], [split], plan, Axis(rank, world_size), 1, 0)
    found = [loader.read(step).digest for step in range(steps)]
    loader.close()
    return found


def test_a_step_has_one_digest_on_any_number_of_ranks(whole):
    found = {tuple(digests(whole, size, rank)) for size in (1, 2, 4) for rank in range(size)}
    assert len(found) == 1 and len(set(found.pop())) == 5


@pytest.mark.parametrize("what", ["token", "mark"])
def test_one_other_token_or_mark_in_the_data_is_another_ledger(what, whole, tmp_path):
    """The packs have the same numbers: a ledger of numbers would say that nothing changed."""

    def change(rows):
        for row in rows:
            if what == "token":
                row["input_ids"][1] = 263 if row["input_ids"][1] != 263 else 262
            else:
                row["m"][1] = 1 - row["m"][1]

    other = make_store(tmp_path, change=change)
    assert not set(digests(whole, 1)) & set(digests(other, 1))


def test_the_ledger_names_what_was_read(whole):
    split = open_store(whole).train
    for index in range(split.num_packs):
        assert digest_of_pack(*dataclasses.astuple(split.pack(index))) == split.pack_digest(index)
    refs = [PackRef(0, 0, 0), PackRef(0, 1, 0)]
    assert step_digest(refs, [split]) != step_digest(refs[::-1], [split])


def test_a_data_file_that_keeps_size_and_time_is_read_again(tmp_path):
    """Size and modification time can be kept by whoever edits a file, the time of the change cannot."""
    store = make_store(tmp_path)
    file = Path(tmp_path / "rows.jsonl")
    before = file.stat()
    text = file.read_text()
    file.write_text(text.replace('"input_ids": [', '"input_ids":  [', 1).replace("], ", "],", 1))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    data_stores = store.parent
    source = SourceConfig(
        path=str(file), format=Format.ids, columns=ColumnsConfig(loss_mask="m"), packing=Packing.best_fit
    )
    data = DataConfig(
        sources={"s": source},
        seq_len=64,
        validation_frac=0.2,
        num_workers=1,
        cache_dir=str(tmp_path / "cache"),
    )
    tokenizer = make_tokenizer()
    shown = io.StringIO()
    prepare(data, tokenizer, lambda: tokenizer, None, Console(file=shown))
    assert "unchanged" not in shown.getvalue()
    assert len(list(data_stores.glob("[!.]*"))) == 2
