from __future__ import annotations

import io
import struct
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from tests.helpers.tokenizers import make_tokenizer, save_tokenizer
from trainer.config.data import CleanConfig, DataConfig, Format, SourceConfig
from trainer.config.model import ModelConfig
from trainer.data.formats.megatron import MegatronFile
from trainer.data.prepare import prepare
from trainer.data.rows.files import list_files
from trainer.data.store.prepared import find_store
from trainer.errors import DataError
from trainer.model.made_with import check_made_with

DOCUMENTS = [[[5, 6, 7]], [[8], [9, 10]], [[11]]]
"""Sequences of each document."""
CODES = {"u1": 1, "i1": 2, "<i2": 3, "<i4": 4, "<i8": 5, "<u2": 8}


def mapped(lengths: list[int], bounds: list[int], code: int, size: int, modes: bytes = b"") -> bytes:
    pointers = np.cumsum([0, *lengths])[:-1] * size
    head = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(lengths), len(bounds))
    arrays = (np.array(lengths, "<i4"), pointers.astype("<i8"), np.array(bounds, "<i8"))
    return head + b"".join(array.tobytes() for array in arrays) + modes


def legacy(lengths: list[int], bounds: list[int], code: int, size: int) -> bytes:
    head = b"TNTIDX\x00\x00" + struct.pack("<6Q", 1, code, size, len(lengths), len(lengths), len(bounds))
    arrays = (np.arange(len(lengths) + 1), np.cumsum([0, *lengths]), np.array(lengths), np.array(bounds))
    return head + b"".join(array.astype("<i8").tobytes() for array in arrays)


def write(
    folder: Path,
    documents: list[list[list[int]]] = DOCUMENTS,
    dtype: str = "<u2",
    code: int | None = None,
    index: Any = mapped,
    **options: Any,
) -> Path:
    sequences = [sequence for document in documents for sequence in document]
    bounds = np.cumsum([0, *map(len, documents)]).tolist()
    code = CODES[dtype] if code is None else code
    raw = index([len(s) for s in sequences], bounds, code, np.dtype(dtype).itemsize, **options)
    (folder / "corpus.idx").write_bytes(raw)
    (folder / "corpus.bin").write_bytes(np.array(list(chain(*sequences)), dtype).tobytes())
    return folder / "corpus.bin"


def read(file: Path) -> list[list[int]]:
    return [row["input_ids"] for _, row in MegatronFile(file).read()]


@pytest.mark.parametrize(("dtype", "code"), [*CODES.items(), ("<u2", 6), ("<u8", 8)])
@pytest.mark.parametrize("index", [mapped, legacy])
def test_ids_of_every_integer_are_read_by_document(dtype: str, code: int, index: Any, tmp_path: Path) -> None:
    """6 and 8 mean different integers to different writers: the size of the .bin decides."""
    file = MegatronFile(write(tmp_path, dtype=dtype, code=code, index=index))
    rows = list(file.read())
    assert rows == [
        (1, {"input_ids": [5, 6, 7]}),
        (2, {"input_ids": [8, 9, 10]}),
        (3, {"input_ids": [11]}),
    ]
    assert file.notes["document of several sequences, joined"] == 1


def test_sequences_may_lie_in_any_order_and_what_none_points_at_is_counted(tmp_path: Path) -> None:
    file = write(tmp_path, dtype="<i4", documents=[[[5, 6]], [[7]]])
    raw = bytearray((tmp_path / "corpus.idx").read_bytes())
    raw[34 + 8 : 34 + 24] = np.array([8, 4], "<i8").tobytes()
    (tmp_path / "corpus.idx").write_bytes(bytes(raw))
    file.write_bytes(np.arange(5, dtype="<i4").tobytes())
    found = MegatronFile(file)
    assert [row["input_ids"] for _, row in found.read()] == [[2, 3], [1]]
    assert found.notes["token of the .bin in no sequence of the index, not read"] == 2


def damaged(raw: bytes, at: int, value: bytes) -> bytes:
    return raw[:at] + value + raw[at + len(value) :]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda raw: b"", "must begin with"),
        (lambda raw: b"{}" * 30, "must begin with"),
        (lambda raw: raw[:20], "ends early"),
        (lambda raw: raw[:-3], "that its counts tell"),
        (lambda raw: raw + b"\0", "that its counts tell"),
        (lambda raw: raw + b"\0" * 4, "multimodal"),
        (lambda raw: damaged(raw, 9, b"\2"), "version 2"),
        (lambda raw: damaged(raw, 17, b"\7"), "float32 or float64 are no token ids"),
        (lambda raw: damaged(raw, 17, b"\6"), "fit none of their integers"),
        (lambda raw: damaged(raw, 17, b"\x63"), "code 99"),
        (lambda raw: damaged(raw, 17, b"\5"), "too few for int64"),
        (lambda raw: damaged(raw, 18, b"\xff" * 8), "that its counts tell"),
        (lambda raw: damaged(raw, 34, b"\xff" * 4), "too few|points outside|fit none"),
        (lambda raw: damaged(raw, 50, b"\1"), "whole tokens of 4 bytes"),
        (lambda raw: damaged(raw, 50, b"\x80"), "points outside"),
        (lambda raw: damaged(raw, 50, b"\xfc" + b"\xff" * 7), "points outside"),
        (lambda raw: damaged(raw, len(raw) - 8, b"\3"), "do not cover"),
        (lambda raw: damaged(raw, len(raw) - 24, b"\4"), "do not cover"),
    ],
)
def test_an_index_that_is_not_one_is_refused_by_its_name(change: Any, expected: str, tmp_path: Path) -> None:
    file = write(tmp_path, dtype="<i4")
    place = tmp_path / "corpus.idx"
    place.write_bytes(change(place.read_bytes()))
    with pytest.raises(DataError, match=expected) as refused:
        read(file)
    assert "corpus." in str(refused.value)


def test_floats_under_a_code_of_integers_and_negative_ids_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="float32 or float64 are no token ids"):
        read(write(tmp_path, dtype="<f8", code=6))
    with pytest.raises(DataError, match="document 2 must hold token ids of 0 or more, but holds -1"):
        read(write(tmp_path, [[[1]], [[2, -1]]], "<i4"))


def list_of(path: Path, **options: Any) -> list[str]:
    options = {"format": Format.ids, "tokenizer": "t", **options}
    return [file.name for file in list_files("s", SourceConfig(path=str(path), **options)).files]


def test_either_file_their_common_name_a_glob_and_a_folder_name_the_pair_once(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"w")
    for name in ("corpus", "corpus.bin", "corpus.idx", "corpus*", ""):
        assert list_of(tmp_path / name) == ["corpus.bin"], name
    listing = list_files("s", SourceConfig(path=str(tmp_path), format=Format.ids, tokenizer="t"))
    assert listing.lines == ["files of the folder that are not read: pytorch_model.bin"]


@pytest.mark.parametrize(
    ("missing", "options", "expected"),
    [
        ("corpus.idx", {}, "corpus.idx' is missing"),
        ("corpus.bin", {}, "corpus.bin' is missing"),
        (None, {"tokenizer": None}, "`data.sources.s.tokenizer` must name the tokenizer that made"),
        (None, {"format": Format.chat}, "`data.sources.s.format` must be ids for Megatron files"),
        (None, {"format": Format.text}, "but is text instead"),
    ],
)
def test_ids_of_which_nothing_tells_the_meaning_are_refused(
    missing: str | None, options: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    write(tmp_path)
    if missing:
        (tmp_path / missing).unlink()
    with pytest.raises(DataError, match=expected):
        list_of(tmp_path / ("corpus.idx" if missing == "corpus.bin" else "corpus.bin"), **options)


def prepared(tmp_path: Path, vocab_size: int | None = None, **options: Any) -> tuple[Any, str, DataConfig]:
    source = SourceConfig(
        path=str(tmp_path / "corpus.bin"), format=Format.ids, tokenizer="made/with", **options
    )
    data = DataConfig(
        sources={"s": source},
        seq_len=16,
        validation_frac=0.0,
        num_workers=1,
        cache_dir=str(tmp_path / "cache"),
    )
    tokenizer, shown = make_tokenizer(), io.StringIO()
    store = prepare(data, tokenizer, lambda: tokenizer, vocab_size, Console(file=shown, width=200))["s"]
    return store, shown.getvalue(), data


def test_ids_become_packs_as_they_are_and_all_that_is_not_done_is_said(tmp_path: Path) -> None:
    eos = make_tokenizer().eos_id
    write(tmp_path, [[[72, 105, eos]], [[72]]], "<i4")
    store, shown, data = prepared(tmp_path, clean=CleanConfig(min_chars=3, normalize_unicode=True))
    pack = store.train.pack(0)
    assert pack.tokens.tolist() == [72, 105, eos, 72] and pack.lengths == [3, 1] and pack.supervised.all()
    assert f"1 of 2 documents end with EOS ('</s>', id {eos}); none is added" in shown
    assert (
        "not applied, because it needs text: clean.normalize_unicode, clean.strip, clean.min_chars" in shown
    )
    assert "the ids were made with 'made/with'" in shown and "s, sample 1" in shown
    assert [origin.partition(":")[0] for origin in store.meta["descriptor"]["origin"]] == [
        "megatron",
        "index",
    ]
    (tmp_path / "corpus.idx").write_bytes(mapped([1, 3], [0, 1, 2], 4, 4))
    assert find_store("s", data.sources["s"], data, make_tokenizer()) is None
    assert prepared(tmp_path)[0].digest != store.digest


def test_an_id_outside_of_the_vocabulary_is_named_with_its_document(tmp_path: Path) -> None:
    write(tmp_path, [[[1]], [[2], [900]]], "<i4")
    with pytest.raises(DataError, match=r"has the id 900 \(.*corpus.bin, document 2\)"):
        prepared(tmp_path, vocab_size=512)


def test_only_a_tokenizer_whose_tokens_have_the_same_ids_is_taken(tmp_path: Path) -> None:
    """The template may be another one, and this run's may have more tokens; a moved id is another text."""
    ours, key = make_tokenizer(), "data.sources.s.tokenizer"
    without_template = save_tokenizer(tmp_path / "same", make_tokenizer(None))
    check_made_with(key, without_template, ModelConfig(), ours)
    fewer = save_tokenizer(tmp_path / "pad", make_tokenizer(pad="[PAD]"))
    with pytest.raises(DataError, match=r"has '\[PAD\]' as id 258, and this run's does not have it"):
        check_made_with(key, fewer, ModelConfig(), ours)
    for name in (str(tmp_path / "none"), "no/such name"):
        with pytest.raises(DataError, match="with the tokenizer that made the ids"):
            check_made_with(key, name, ModelConfig(), ours)
    check_made_with(key, "a/b", ModelConfig(path="a/b"), ours)
