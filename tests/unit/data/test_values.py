"""Named numbers of tokens: from rows and turns into stores and batches, with their sums; none that is not declared."""

from __future__ import annotations

import io
import json
import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import astuple, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from tests.helpers.tokenizers import make_tokenizer
from tests.helpers.units import NAME, batch_of, options_of, random_units, write_units
from tests.helpers.wait import LIMIT_S
from trainer.config.data import CleanConfig, ColumnsConfig, DataConfig, Format, Role, SourceConfig, TokenValue
from trainer.config.learn import LearnConfig, Turns
from trainer.data.chat.settle import LEARN, settle_chat
from trainer.data.pack.collate import IGNORE, collate
from trainer.data.pack.refs import FILLER, PackRef, read_batch
from trainer.data.prepare import prepare
from trainer.data.rows.clean import content_digest
from trainer.data.rows.weight import LARGEST, SMALLEST, row_weight, turn_weight
from trainer.data.store.pack_arrays import digest_of_pack, sum_values
from trainer.data.store.prepared import find_store
from trainer.data.store.store import Store, open_store
from trainer.data.tokens.tokenise import encode_batch
from trainer.data.types import ChatDocument, EncodedBatch, Pack, RowBatch, RowError, Unit
from trainer.dist.mesh import Axis
from trainer.errors import DataError
from trainer.mix.loader import StepBatch, TrainLoader
from trainer.mix.plan import DataPlan, Pool

WEIGHTED = [TokenValue.weight]
NAMES = ("margin", "weight")
COMPLETION, CHAT, IDS = {"format": Format.completion}, {"format": Format.chat}, {"format": Format.ids}
AS_CHAT = {**COMPLETION, "as_chat": True}
ASKED = {"role": "user", "content": "Q"}


def said(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


# ---- one weight


@pytest.mark.parametrize(
    ("value", "weight"),
    [
        (0, 0.0),
        (1, 1.0),
        (0.5, 0.5),
        (True, 1.0),
        (False, 0.0),
        (-0.0, 0.0),
        (3, 3.0),
        (0.1, float(np.float32(0.1))),
    ],
)
def test_a_weight_is_a_number_of_zero_or_more(value: Any, weight: float) -> None:
    assert row_weight(value, "w") == turn_weight(value, 1.0) == weight


@pytest.mark.parametrize(
    "value", [None, "1", "0.5", "", [1], {}, -1, -0.001, math.nan, math.inf, -math.inf, 10**400, 1e39, 1e-40]
)
def test_what_is_no_weight_is_refused(value: Any) -> None:
    for judge in (lambda: row_weight(value, "w"), lambda: turn_weight(value, 1.0)):
        with pytest.raises(RowError):
            judge()


def test_the_weights_of_row_and_turn_multiply_and_must_stay_in_range() -> None:
    assert turn_weight(0.5, 4.0) == 2.0 and turn_weight(0, 4.0) == turn_weight(4, 0.0) == 0.0
    assert row_weight(LARGEST, "w") == LARGEST and row_weight(SMALLEST, "w") == SMALLEST
    for own, of_row in ((LARGEST, 2.0), (SMALLEST, 0.5)):
        with pytest.raises(RowError, match=r"between 1\.2e-38 and 3\.4e"):
            turn_weight(own, of_row)


# ---- turns


def settle(of_row: float | None, *turns: dict[str, Any]) -> ChatDocument:
    values = {} if of_row is None else {"weight": of_row}
    document = settle_chat(ChatDocument([ASKED, *turns], values=values), Counter())
    assert document is not None
    return document


def test_turns_say_any_weight_where_it_is_kept() -> None:
    document = settle(2.0, said("A", weight=0.5), ASKED, said("B"), ASKED, said("C", weight=0))
    assert document.turn_values == {1: {"weight": 1.0}, 5: {"weight": 0.0}}
    assert [m.get(LEARN) for m in document.messages] == [None, True, None, None, None, False]
    assert all("weight" not in message for message in document.messages)


@pytest.mark.parametrize(
    ("turn", "learnt"), [({"weight": 0.5, "train": True}, True), ({"weight": 0, "loss": 0}, False)]
)
def test_a_weight_and_a_mark_that_agree_are_one_statement(turn: dict[str, Any], learnt: bool) -> None:
    assert settle(1.0, said("A", **turn)).messages[1][LEARN] is learnt


@pytest.mark.parametrize(
    "turn", [{"weight": 0.5, "train": False}, {"weight": 0, "train": True}, {"loss": 0.5}, {"loss_weight": 1}]
)
def test_a_weight_and_a_mark_that_do_not_agree_are_refused(turn: dict[str, Any]) -> None:
    with pytest.raises(RowError):
        settle(1.0, said("A", **turn))


def test_without_the_declaration_a_turn_says_zero_or_one() -> None:
    assert settle(None, said("A", weight=1)).turn_values == {}
    with pytest.raises(RowError, match="hold 0, 1, true or false in `weight` of a turn"):
        settle(None, said("A", weight=0.5))


# ---- tokens


def encode(row: dict[str, Any], values: list[TokenValue] = WEIGHTED, **options: Any) -> EncodedBatch:
    columns = options.pop("columns", ColumnsConfig(weight="w"))
    source = SourceConfig(columns=columns, **options)
    adds_eos = options.get("format", Format.text) in (Format.text, Format.completion) and not options.get(
        "as_chat"
    )
    encoded = encode_batch(RowBatch("f", "line", [1], [row]), source, adds_eos, make_tokenizer(), values)
    assert not encoded.problems, encoded.problems
    return encoded


def runs(encoded: EncodedBatch) -> list[tuple[str, float]]:
    """Return the text of each run of supervised tokens of one weight; check that the others have none."""
    found: list[tuple[list[int], float]] = []
    last = None
    rows = zip(
        encoded.tokens.tolist(), encoded.supervised.tolist(), encoded.values["weight"].tolist(), strict=True
    )
    for token, is_supervised, weight in rows:
        assert is_supervised or weight == 0
        key = (is_supervised, weight)
        if is_supervised and key == last:
            found[-1][0].append(token)
        elif is_supervised:
            found.append(([token], weight))
        last = key
    return [(make_tokenizer().decode(ids), weight) for ids, weight in found]


def test_a_rows_weight_is_that_of_all_its_supervised_tokens() -> None:
    assert runs(encode({"text": "abc", "w": 0.25})) == [("abc</s>", 0.25)]
    assert runs(encode({"prompt": "2+2=", "completion": "4", "w": 3}, **COMPLETION)) == [("4</s>", 3.0)]
    row = {"prompt": "2+2?", "completion": "4", "w": 0.5}
    assert runs(encode(row, **AS_CHAT)) == [("4<|im_end|>", 0.5)]
    columns = ColumnsConfig(weight="w", loss_mask="m")
    encoded = encode({"input_ids": [65, 66, 67], "m": [1, 0, 1], "w": 2.5}, columns=columns, **IDS)
    assert (
        encoded.values["weight"].tolist() == [2.5, 0.0, 2.5] and encoded.values["weight"].dtype == np.float32
    )
    assert runs(encode({"text": "abc"})) == [("abc</s>", 1.0)], "a row without one weighs 1"


CONVERSATION = [
    ASKED,
    said("one", weight=0.5),
    {"role": "user", "content": "more"},
    said("two", weight=0),
    {"role": "user", "content": "again", "weight": 4},
    said("three"),
]


def test_each_turn_has_its_own_weight_times_the_rows() -> None:
    encoded = encode({"messages": CONVERSATION, "w": 3}, **CHAT)
    assert runs(encoded) == [("one<|im_end|>", 1.5), ("again", 12.0), ("three<|im_end|>", 3.0)]
    unweighted = [{key: v for key, v in turn.items() if key != "weight"} for turn in CONVERSATION]
    assert runs(encode({"messages": unweighted, "w": 3}, **CHAT)) == [
        ("one<|im_end|>", 3.0),
        ("two<|im_end|>", 3.0),
        ("three<|im_end|>", 3.0),
    ]


def test_turns_in_prompt_and_completion_and_of_other_layouts_have_their_weights() -> None:
    row = {"prompt": [ASKED], "completion": [said("A", weight=0.5)], "w": 0.5}
    assert runs(encode(row, **AS_CHAT)) == [("A<|im_end|>", 0.25)]
    turns = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A", "weight": 2}]
    assert runs(encode({"messages": turns}, **CHAT)) == [("A<|im_end|>", 2.0)]


def test_what_learn_leaves_out_has_no_weight() -> None:
    encoded = encode(
        {"messages": CONVERSATION[:2] + CONVERSATION[4:]}, learn=LearnConfig(turns=Turns.last), **CHAT
    )
    assert runs(encoded) == [("again", 4.0), ("three<|im_end|>", 1.0)]


def test_a_row_of_weight_zero_is_dropped_and_counted() -> None:
    for row, options in (
        ({"text": "a"}, {}),
        ({"prompt": "a", "completion": "b"}, COMPLETION),
        ({"messages": CONVERSATION}, CHAT),
        ({"input_ids": [1]}, IDS),
    ):
        encoded = encode({**row, "w": 0}, **options)
        assert len(encoded.tokens) == 0 and +encoded.counts == {"rows": 1, "zero_weight": 1}


def test_without_the_declaration_tokens_have_no_numbers() -> None:
    encoded = encode({"text": "abc", "w": 0.25}, values=[])
    assert encoded.values == {} and encoded.supervised.all()


def test_a_weight_moves_no_document_to_the_held_out_side() -> None:
    """The digest of a document's content decides where it goes and which are duplicates."""
    turns = [[ASKED, said("A", weight=weight)] for weight in (1, 0.5)]
    documents = [settle_chat(ChatDocument(t, values={"weight": 1.0}), Counter()) for t in turns]
    documents.append(replace(documents[0], values={"weight": 7.0}))
    documents.append(settle_chat(ChatDocument(turns[0]), Counter()))
    assert len({content_digest(document) for document in documents}) == 1
    clean = CleanConfig(normalize_unicode=True)
    encoded = encode({"messages": [ASKED, said(" A\0 ", weight=0.5)], "w": 2}, clean=clean, **CHAT)
    assert runs(encoded) == [("A<|im_end|>", 1.0)], "cleaning keeps the weights"


turns_with_weights = st.lists(
    st.tuples(st.text("abc", min_size=1, max_size=4), st.sampled_from([None, 0, 0.5, 1, 2.25])),
    min_size=1,
    max_size=5,
)


@settings(max_examples=40)
@given(turns_with_weights, st.sampled_from([0.5, 1, 3]))
def test_supervised_tokens_have_a_weight_and_no_others_do(
    turns: list[tuple[str, Any]], of_row: float
) -> None:
    messages: list[dict[str, Any]] = []
    for content, weight in turns:
        messages += [ASKED, said(content) if weight is None else said(content, weight=weight)]
    encoded = encode({"messages": messages, "w": of_row}, **CHAT)
    weights = encoded.values["weight"]
    assert len(weights) == len(encoded.tokens) and ((weights > 0) == (encoded.supervised > 0)).all()
    wanted = [(f"{content}<|im_end|>", of_row * (1 if w is None else w)) for content, w in turns if w != 0]
    assert runs(encoded) == wanted if wanted else len(encoded.tokens) == 0


# ---- prepare


def write_rows(folder: Path, rows: list[Any]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "rows.jsonl")


def data_of(folder: Path, path: str, values: list[TokenValue] = WEIGHTED, **options: Any) -> DataConfig:
    return DataConfig(
        sources={"s": SourceConfig(path=path, **options)},
        seq_len=64,
        validation_frac=0.2,
        num_workers=1,
        cache_dir=str(folder / "cache"),
        values=values,
    )


def run(data: DataConfig, shown: io.StringIO | None = None) -> Store:
    tokenizer = make_tokenizer()
    console = Console(file=shown or io.StringIO(), width=200)
    return prepare(data, tokenizer, lambda: tokenizer, None, console)["s"]


def prepared(folder: Path, rows: list[Any], values: list[TokenValue] = WEIGHTED, **options: Any) -> Store:
    return run(data_of(folder, write_rows(folder, rows), values, **options))


def documents(num_rows: int, factor: float = 1.0, seed: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(num_rows):
        length = int(rng.integers(2, 40))
        rows.append({"text": f"{number} " + "x" * length, "weight": factor * float(rng.integers(1, 9)) / 4})
    return rows


@pytest.mark.parametrize("column", ["weight", "sample_weight", "loss_weight"])
def test_a_column_of_weights_is_taken_by_its_usual_name_and_told(column: str, tmp_path: Path) -> None:
    shown = io.StringIO()
    path = write_rows(
        tmp_path, [{"text": "abc", column: 0.5}, {"text": "de", column: 2}, {"text": "f", column: 0}]
    )
    store = run(replace(data_of(tmp_path, path), validation_frac=0.0), shown)
    pack, _ = store.train._arrays.read(0)
    assert pack.values["weight"].tolist() == [0.5] * 4 + [2.0] * 3
    assert store.train.pack_value_sums["weight"].tolist() == [0.5 * 3 + 2.0 * 2]
    assert f"weight={column}" in shown.getvalue() and "1 of weight 0" in shown.getvalue()
    assert "weight of targets" in shown.getvalue() and "5.5 (mean 1.1)" in shown.getvalue()


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "None"), ("0.5", "'0.5'"), (-1, "-1"), ([1], "[1]"), (1e-45, "1e-45")]
)
def test_what_is_no_weight_is_refused_with_its_line(value: Any, shown: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        prepared(tmp_path / "row", [{"text": "a", "weight": 1}, {"text": "b", "weight": value}])
    assert f"rows.jsonl, line 2, with {shown}." in str(caught.value)
    turns = [[ASKED, said("A", weight=1)], [ASKED, said("A", weight=value)]]
    with pytest.raises(DataError) as caught:
        prepared(tmp_path / "turn", [{"messages": t} for t in turns], **CHAT)
    assert f"rows.jsonl, line 2, with {shown}." in str(caught.value)


def test_weights_in_a_csv_file_are_text_and_refused_with_the_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,weight\nabc,0.5\n")
    with pytest.raises(DataError, match=r"number of at least 0 in column 'weight'.* row 1, with '0\.5'"):
        run(data_of(tmp_path, str(tmp_path / "a.csv")))


def test_weights_of_a_table_are_numbers_and_the_nulls_of_its_turns_say_nothing(tmp_path: Path) -> None:
    turns = [[ASKED, said("one", weight=0.5), ASKED, said("two")]]
    pq.write_table(pa.table({"messages": turns, "weight": pa.array([2], pa.int8())}), tmp_path / "a.parquet")
    data = replace(data_of(tmp_path, str(tmp_path / "a.parquet"), **CHAT), validation_frac=0.0, seq_len=128)
    weights = run(data).train.pack(0).values["weight"]
    assert sorted(set(weights.tolist())) == [0.0, 1.0, 2.0]


def test_a_column_that_only_some_rows_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"columns\.weight` must name a column that every row has or none.* 1 of 2"
    ):
        prepared(tmp_path, [{"text": "a", "weight": 1}, {"text": "b"}])


def test_two_columns_that_could_be_it_are_refused_and_one_can_be_ignored(tmp_path: Path) -> None:
    rows = [{"text": "abc", "weight": 0.5, "sample_weight": 3.0}]
    with pytest.raises(
        DataError, match=r"columns\.weight` must say which of the columns \[weight, sample_weight\]"
    ):
        prepared(tmp_path, rows)
    chosen = prepared(tmp_path, rows, columns=ColumnsConfig(weight="sample_weight", ignore=["weight"]))
    assert chosen.train.pack_value_sums["weight"].tolist() == [9.0]


def test_without_the_declaration_a_column_of_weights_is_refused_as_ever(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        prepared(tmp_path, [{"text": "a", "weight": 0.5}], values=[])
    assert str(caught.value).startswith(
        "`data.sources.s.columns` must say what becomes of the column [weight], which "
    ) and str(caught.value).endswith(
        "To leave it unread: data.sources.s.columns.ignore=[weight]. To make it count: objective=weighted."
    )
    assert prepared(tmp_path, [{"text": "a", "weight": 1}], values=[]).train.values == ()


def test_a_source_that_says_no_weights_weighs_one_throughout(tmp_path: Path) -> None:
    store = prepared(tmp_path, [{"text": f"text {i}"} for i in range(30)])
    assert store.train.values == ("weight",)
    assert store.train.pack_value_sums["weight"].tolist() == store.train.pack_targets.astype(float).tolist()


# ---- the store


def test_a_store_has_the_columns_that_are_declared_and_their_sums(tmp_path: Path) -> None:
    store = prepared(tmp_path, documents(80))
    names = {Path(name).name for name in store.meta["arrays"]}
    assert {"value.weight.bin", "pack_value.weight.npy"} <= names and store.meta["values"] == ["weight"]
    for split in (store.train, store.validation):
        sums = split.pack_value_sums["weight"]
        assert sums.dtype == np.float64 and len(sums) == split.num_packs > 0
        for index in range(split.num_packs):
            pack = split.pack(index)
            wanted = 0.0
            start = 0
            for length in pack.lengths:
                part = slice(start + 1, start + length)
                wanted += sum(pack.values["weight"][part][pack.supervised[part]].tolist())
                start += length
            assert sums[index] == wanted, "quarters are summed without rounding"


def test_the_sums_of_a_pack_are_rounded_once() -> None:
    """In order, float64 loses the small ones: 2^53 + 1 is 2^53."""
    numbers = np.array([9.0, 2.0**53, 1.0, 1.0, 9.0, 3.0], dtype=np.float32)
    pack = Pack(np.arange(6), np.array([1, 1, 1, 1, 1, 0], dtype=np.bool_), [4, 2], None, {"x": numbers})
    assert sum_values(pack) == {"x": 2.0**53 + 2}


def test_a_declaration_makes_another_store_and_key(tmp_path: Path) -> None:
    path = write_rows(tmp_path, [{"text": f"text {i}"} for i in range(20)])
    with_weights, without = data_of(tmp_path, path), data_of(tmp_path, path, values=[])
    assert run(with_weights).digest != run(without).digest
    places = [find_store("s", data.sources["s"], data, make_tokenizer()) for data in (with_weights, without)]
    assert [open_store(place).train.values for place in places if place] == [("weight",), ()]
    assert not [name for name in open_store(places[1]).meta["arrays"] if "value" in name]


def test_a_changed_weight_is_another_digest_of_its_pack_and_of_no_other(tmp_path: Path) -> None:
    rows = documents(60)
    before = prepared(tmp_path / "a", rows)
    rows[7]["weight"] += 0.25
    after = prepared(tmp_path / "b", rows)
    changed = 0
    for one, other in ((before.train, after.train), (before.validation, after.validation)):
        assert one.num_packs == other.num_packs
        changed += sum(one.pack_digest(i) != other.pack_digest(i) for i in range(one.num_packs))
        for index in range(one.num_packs):
            assert digest_of_pack(*astuple(one.pack(index))) == one.pack_digest(index)
    assert changed >= 1
    assert sum(map(len, (before.train.pack_targets, before.validation.pack_targets))) > changed


def test_the_name_of_a_number_is_part_of_a_packs_digest() -> None:
    tokens, marks = np.arange(3), np.ones(3, dtype=np.uint8)
    numbers, others = np.array([1, 2, 3], dtype=np.float32), np.array([3, 2, 1], dtype=np.float32)
    found = [
        digest_of_pack(tokens, marks, [3], None, values)
        for values in (None, {"a": numbers}, {"b": numbers}, {"a": others}, {"a": numbers, "b": others})
    ]
    assert len(set(found)) == 5
    assert found[4] == digest_of_pack(tokens, marks, [3], None, {"b": others, "a": numbers})
    assert found[0] == digest_of_pack(tokens, marks, [3], None, {})


def test_units_carry_numbers_too(tmp_path: Path) -> None:
    """Two names, as a preference may have a margin and a weight; no format makes these yet."""
    batch = batch_of(random_units(40, 2, 64, seed=2), values=NAMES)
    store = open_store(write_units(tmp_path, [batch], options_of(Unit.pair), NAMES), Unit.pair)
    assert store.train.values == NAMES
    found = {}
    for split in (store.train, store.validation):
        for index in range(split.num_packs):
            pack = split.pack(index)
            for name in split.values:
                found |= dict(
                    zip((f"{name}{t}" for t in pack.tokens.tolist()), pack.values[name].tolist(), strict=True)
                )
            assert sum_values(pack) == {n: float(split.pack_value_sums[n][index]) for n in split.values}
    last = np.cumsum(batch.lengths) - 1
    for name in store.train.values:
        for piece, at in enumerate(last.tolist()):
            assert found[f"{name}{piece + 1}"] == batch.values[name][at]


def test_writing_that_was_killed_and_begun_again_gives_the_same_bytes(tmp_path: Path) -> None:
    """Killed in the middle of the spool: nothing of it is a store, and nothing of it is in the next one."""
    batches = [batch_of(random_units(20, 4, 64, seed), seed, NAMES) for seed in range(10)]
    options, context = options_of(Unit.group), get_context("fork")
    reached = context.Event()

    def half() -> Iterator[EncodedBatch]:
        yield from batches[:5]
        reached.set()
        time.sleep(LIMIT_S)

    stores = tmp_path / "stores"
    process = context.Process(target=write_units, args=(stores, half(), options, NAMES))
    process.start()
    assert reached.wait(LIMIT_S) and process.is_alive()
    process.kill()
    process.join()
    assert [path.name.startswith(f".{NAME}.") for path in stores.iterdir()] == [True]
    digests = []
    for folder in (stores, tmp_path / "uninterrupted"):
        meta = open_store(write_units(folder, batches, options, NAMES), Unit.group).meta
        digests.append(meta["arrays"])
    assert digests[0] == digests[1] and len(digests[0]) == 2 * (6 + 3 + 2 * len(NAMES))


# ---- batches


def test_numbers_are_shifted_as_labels_are_and_zero_without_one() -> None:
    numbers = np.array([9, 1, 2, 9, 3, 4], dtype=np.float32)
    pack = Pack(np.arange(10, 16), np.array([1, 1, 0, 1, 1, 1], dtype=np.bool_), [3, 3], None, {"w": numbers})
    micro = collate([pack], [0], 8, 0)
    assert micro.labels_BT.tolist() == [[11, IGNORE, IGNORE, 14, 15, IGNORE, IGNORE, IGNORE]]
    assert micro.values_BT["w"].tolist() == [[1, 0, 0, 3, 4, 0, 0, 0]]
    assert micro.values_BT["w"].dtype == np.float32
    assert collate([Pack(np.arange(2), np.ones(2, dtype=np.bool_), [2])], [0], 4, 0).values_BT == {}


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("splits")
    return [
        prepared(folder / "new", documents(300, 1 / 3), role=Role.target).train,
        prepared(folder / "old", documents(120, 0.1, seed=1), role=Role.replay).train,
    ]


def test_rows_that_fill_a_batch_up_have_no_numbers(splits: list[Any]) -> None:
    micro = read_batch(splits, [PackRef(0, 0, 0), FILLER], 0)
    assert micro.values_BT["weight"][0].any() and not micro.values_BT["weight"][1].any()


def batches(splits: list[Any], world_size: int) -> list[list[StepBatch]]:
    pools = [
        Pool("new", False, 1.0, [0], [splits[0].pack_targets]),
        Pool("old", True, 1.0, [1], [splits[1].pack_targets]),
    ]
    found = []
    for rank in range(world_size):
        plan = DataPlan(pools, 12, 64, lambda step: 0.3, seed=1)
        loader = TrainLoader(["new", "old"], splits, plan, Axis(rank, world_size), 3, 0)
        found.append([loader.read(step) for step in range(8)])
        loader.close()
    return found


def test_the_sums_of_a_step_are_those_of_all_ranks_micro_batches(splits: list[Any]) -> None:
    """What divides the loss comes from the plan: no rank asks another, and all divide by the same number."""
    seen = []
    for world_size in (1, 2, 4):
        by_rank = batches(splits, world_size)
        for step in range(8):
            batch = by_rank[0][step]
            assert all(other[step].value_sums == batch.value_sums for other in by_rank)
            micros = [micro for rank in by_rank for micro in rank[step].micro_batches]
            by_source = {"new": [], "old": []}
            for micro in micros:
                for row, source in enumerate(micro.source_B):
                    by_source[("new", "old")[source]] += micro.values_BT["weight"][row].tolist()
            for name, numbers in by_source.items():
                assert batch.value_sums_by_source["weight"][name] == pytest.approx(
                    math.fsum(numbers), rel=1e-15
                )
            assert batch.value_sums["weight"] == pytest.approx(
                math.fsum([*by_source["new"], *by_source["old"]]), rel=1e-15
            )
            assert batch.num_units_global == sum(micro.num_units for micro in micros)
        seen.append([(batch.value_sums, batch.digest) for batch in by_rank[0]])
    assert seen[0] == seen[1] == seen[2]


def test_a_changed_weight_is_another_ledger(splits: list[Any], tmp_path: Path) -> None:
    other = prepared(tmp_path, documents(300, 1 / 4)).train
    before, after = batches(splits, 1)[0], batches([other, splits[1]], 1)[0]
    assert [b.num_targets_by_source for b in before] == [b.num_targets_by_source for b in after]
    assert not {b.digest for b in before} & {b.digest for b in after}
