"""Pairs and answers with labels, from a file to a micro-batch: kept or dropped whole, shown, or refused."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from tests.helpers.tokenizers import make_tokenizer
from trainer.config.data import DataConfig, Format, SourceConfig, TokenValue
from trainer.data.pack.collate import IGNORE
from trainer.data.pack.refs import PackRef, read_batch
from trainer.data.prepare import prepare
from trainer.data.store.store import Store
from trainer.data.types import Unit
from trainer.errors import DataError

CHAT = make_tokenizer()
PAIRS = [{"prompt": f"Q{n}?", "chosen": "Yes, " * (n % 4) + "yes.", "rejected": "No."} for n in range(12)]
ANSWERS = [{"prompt": f"Q{n}?", "completion": "Yes.", "label": n % 3 == 0} for n in range(12)]
TEXTS = [{"text": f"Text number {n}."} for n in range(12)]


def source_of(folder: Path, name: str, rows: list[Any], format_: Format, **options: Any) -> SourceConfig:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    as_chat = format_ is not Format.text
    return SourceConfig(path=str(path), format=format_, as_chat=as_chat, **options)


def prepared(folder: Path, sources: dict[str, SourceConfig], **options: Any) -> tuple[dict[str, Store], str]:
    options = {"seq_len": 512, "num_workers": 1, "validation_frac": 0.0, **options}
    data = DataConfig(sources=sources, cache_dir=str(folder / "cache"), **options)
    shown = io.StringIO()
    return prepare(data, CHAT, lambda: CHAT, None, Console(file=shown, width=200)), shown.getvalue()


def test_a_pair_lies_as_two_pieces_side_by_side_in_a_pack(tmp_path: Path) -> None:
    stores, shown = prepared(tmp_path, {"s": source_of(tmp_path, "s", PAIRS, Format.preference)})
    train = stores["s"].train
    assert train.unit is Unit.pair and int(train.pack_units.sum()) == 12
    refs = [PackRef(0, pack, 0) for pack in range(train.num_packs)]
    micro = read_batch([train], refs, 0)
    seen = []
    for unit in range(micro.num_units):
        sides = []
        for segment in np.flatnonzero(micro.units_S == unit):
            ids = micro.tokens_BT[micro.segments_BT == segment].tolist()
            labels = micro.labels_BT[micro.segments_BT == segment]
            learnt = int((labels != IGNORE).argmax()) + 1
            sides.append((CHAT.decode(ids[:learnt]), CHAT.decode(labels[labels != IGNORE].tolist())))
        (prompt, chosen), (other, rejected) = sides
        assert prompt == other
        seen.append((prompt.split("user\n")[1].split("<|im_end|>")[0], chosen, rejected))
    wanted = [(row["prompt"], row["chosen"] + "<|im_end|>", "No.<|im_end|>") for row in PAIRS]
    assert sorted(seen) == sorted(wanted)
    assert "s, sample 1, prompt and chosen" in shown and "s, sample 1, rejected" in shown
    assert "⟦No.<|im_end|>⟧" in shown and "pairs" in shown


@pytest.mark.parametrize("as_chat", [True, False])
def test_rows_of_one_prompt_are_held_out_together(tmp_path: Path, as_chat: bool) -> None:
    """Held out by their content, a prompt whose other answers were trained on would be measured."""
    rows = [
        {"prompt": f"Q{n}?", "chosen": f"Yes {k}.", "rejected": f"No {k}."}
        for n in range(30)
        for k in range(4)
    ]
    source = source_of(tmp_path, "s", rows, Format.preference)
    source.as_chat = as_chat
    store = prepared(tmp_path, {"s": source}, validation_frac=0.3)[0]["s"]
    asked = []
    for split in (store.train, store.validation):
        texts = [CHAT.decode(split.piece(index).tokens.tolist()) for index in range(split.num_pieces)]
        asked.append({text.split("Q")[1].split("?")[0] for text in texts})
        assert int(split.pack_units.sum()) == 4 * len(asked[-1]), "a prompt is whole, and no row is a copy"
    assert all(asked) and not asked[0] & asked[1] and len(asked[0] | asked[1]) == 30


@pytest.mark.parametrize("column", ["input", "margin", "history", "functions"])
def test_a_column_that_would_change_a_pair_is_not_left_unread(tmp_path: Path, column: str) -> None:
    rows = [{**row, column: "More."} for row in PAIRS]
    with pytest.raises(DataError, match=rf"must say what becomes of the column \[{column}\], which .* fills"):
        prepared(tmp_path, {"s": source_of(tmp_path, "s", rows, Format.preference)})


def test_a_pair_that_does_not_fit_is_dropped_whole_and_counted(tmp_path: Path) -> None:
    rows = [*PAIRS, {"prompt": "Q?", "chosen": "Yes.", "rejected": "No. " * 200}]
    stores, shown = prepared(tmp_path, {"s": source_of(tmp_path, "s", rows, Format.preference)})
    assert int(stores["s"].train.pack_units.sum()) == 12
    assert "1 longer than the sequence" in shown


def test_a_source_whose_rows_are_all_dropped_says_why(tmp_path: Path) -> None:
    rows = [{"prompt": "Q?", "chosen": "Yes.", "rejected": "Yes."}] * 3
    with pytest.raises(
        DataError, match=r"3 whose answers are the same. Check that data.sources.s.columns name two"
    ):
        prepared(tmp_path, {"s": source_of(tmp_path, "s", rows, Format.preference)})


def test_labels_are_kept_beside_sources_without_any(tmp_path: Path) -> None:
    sources = {
        "s": source_of(tmp_path, "s", ANSWERS, Format.unpaired),
        "t": source_of(tmp_path, "t", TEXTS, Format.text),
    }
    stores, shown = prepared(tmp_path, sources, values=[TokenValue.label], seq_len=2048)
    train = stores["s"].train
    assert train.unit is Unit.answer and stores["t"].train.unit is Unit.document
    micro = read_batch([train, stores["t"].train], [PackRef(0, 0, 0), PackRef(1, 0, 0)], 0)
    labels_S = [
        set(micro.values_BT["label"][(micro.segments_BT == segment) & (micro.labels_BT != IGNORE)].tolist())
        for segment in range(len(micro.units_S))
    ]
    num_answers = int(train.pack_units[0])
    assert "supervised tokens" in shown and "of targets" not in shown, "a sum of labels says nothing"
    assert sorted(labels_S[:num_answers], key=min) == [{-1.0}] * 8 + [{1.0}] * 4
    assert labels_S[num_answers + 1 :] and all(found <= {0.0} for found in labels_S[num_answers + 1 :])


@pytest.mark.parametrize("label", [True, False])
def test_labels_of_one_class_are_a_sentence(label: bool, tmp_path: Path) -> None:
    rows = [{**row, "label": label} for row in ANSWERS]
    with pytest.raises(
        DataError, match=f"is {str(label).lower()} in all 12 answers of data.sources.s instead"
    ):
        prepared(
            tmp_path,
            {"s": source_of(tmp_path, "s", rows, Format.unpaired)},
            values=[TokenValue.label],
        )


def test_two_sources_of_one_class_each_stand_together(tmp_path: Path) -> None:
    sources = {
        name: source_of(
            tmp_path,
            name,
            [{**row, "prompt": f"{name}{n}", "label": name == "good"} for n, row in enumerate(ANSWERS)],
            Format.unpaired,
        )
        for name in ("good", "bad")
    }
    stores, _ = prepared(tmp_path, sources, values=[TokenValue.label])
    assert set(stores) == {"good", "bad"}


def test_columns_of_preferences_leave_the_stores_of_others_alone(tmp_path: Path) -> None:
    from trainer.data.store.prepared import shaping_options

    data = DataConfig()
    columns = shaping_options(SourceConfig(path="x"), data)["columns"]
    assert not {"chosen", "rejected", "completions", "label"} & set(columns)
    assert "chosen" in shaping_options(SourceConfig(path="x", format=Format.preference), data)["columns"]
