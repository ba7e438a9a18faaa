from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from rich.console import Console

from tests.helpers.tokenizers import make_tokenizer
from trainer.config.data import DataConfig, Format, SourceConfig
from trainer.data.prepare import prepare
from trainer.data.rows.files import list_files
from trainer.data.rows.source import read_files
from trainer.errors import DataError

TEXTS = [f"text {i}" for i in range(6)]


def listed(path: Path, **options: Any) -> Any:
    return list_files("s", SourceConfig(path=str(path), **options))


def read(path: Path, **options: Any) -> list[Any]:
    source = SourceConfig(path=str(path), **options)
    rows = read_files("s", source, list_files("s", source))
    columns = rows.source.columns
    column = columns.messages if source.format is Format.chat else columns.text
    return [row[column] for batch in rows.batches() for row in batch.rows]


def save(path: Path, texts: list[str] = TEXTS, **options: Any) -> Path:
    datasets.Dataset.from_dict({"text": texts, "n": range(len(texts))}).save_to_disk(str(path), **options)
    return path


def test_a_dataset_saved_to_disk_is_read_in_the_order_of_its_rows(tmp_path: Path) -> None:
    save(tmp_path / "d", num_shards=3)
    assert read(tmp_path / "d") == TEXTS
    assert listed(tmp_path / "d").lines == ["a Dataset saved to disk: 3 files"]
    shuffled = datasets.Dataset.from_dict({"content": TEXTS}).select([4, 1, 1])
    shuffled.save_to_disk(str(tmp_path / "e"))
    assert read(tmp_path / "e") == ["text 4", "text 1", "text 1"]


def test_chats_of_a_saved_dataset_lose_the_keys_that_other_rows_brought(tmp_path: Path) -> None:
    call = {"function": {"name": "f", "arguments": {"a": 1}}}
    turns = [
        [{"role": "user", "content": "a"}],
        [{"role": "assistant", "content": "b", "tool_calls": [call]}],
    ]
    datasets.Dataset.from_dict({"messages": turns}).save_to_disk(str(tmp_path / "d"))
    assert read(tmp_path / "d", format=Format.chat) == turns


def test_of_a_dataset_dict_the_split_that_is_asked_for_is_read(tmp_path: Path) -> None:
    """Its splits have any name, and none is told by the names of files."""
    made = {
        name: datasets.Dataset.from_dict({"text": [name]}) for name in ("train", "train_sft", "validation")
    }
    datasets.DatasetDict(made).save_to_disk(str(tmp_path / "d"))
    assert read(tmp_path / "d") == ["train"]
    assert read(tmp_path / "d", split="train_sft") == ["train_sft"]
    assert listed(tmp_path / "d", split="validation").lines == [
        "a DatasetDict saved to disk: split 'validation' (other splits: train, train_sft): 1 file"
    ]


def with_mapping(folder: Path, order: list[int]) -> Path:
    """Write an indices mapping beside the data, as early versions did for a shuffle."""
    table = pa.table({"indices": pa.array(order, pa.uint64())})
    with pa.OSFile(str(folder / "indices.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as out:
        out.write_table(table, max_chunksize=2)
    state = json.loads((folder / "state.json").read_text())
    state["_indices_data_files"] = [{"filename": "indices.arrow"}]
    (folder / "state.json").write_text(json.dumps(state))
    return folder


def test_an_indices_mapping_chooses_rows_and_their_order_over_all_files(tmp_path: Path) -> None:
    folder = with_mapping(save(tmp_path / "d", num_shards=3), [5, 0, 3, 3, 2])
    assert read(folder) == [TEXTS[i] for i in (5, 0, 3, 3, 2)]
    assert "rows are read by the folder's indices mapping" in listed(folder).lines
    with pytest.raises(DataError, match="must name rows below 6, the rows of its folder, but names 6"):
        read(with_mapping(folder, [0, 6]))


def test_another_mapping_is_another_store(tmp_path: Path) -> None:
    digests = []
    folder = save(tmp_path / "d")
    for order in ([0, 1], [1, 0]):
        with_mapping(folder, order)
        data = DataConfig(
            sources={"s": SourceConfig(path=str(folder))},
            seq_len=64,
            num_workers=1,
            cache_dir=str(tmp_path / "c"),
        )
        tokenizer = make_tokenizer()
        digests.append(prepare(data, tokenizer, lambda: tokenizer, None, Console(file=io.StringIO())))  # noqa: B023
    assert digests[0]["s"].digest != digests[1]["s"].digest


def test_what_lies_beside_the_data_or_is_set_on_it_is_said(tmp_path: Path) -> None:
    folder = save(tmp_path / "d")
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, "_format_columns": ["n"], "_split": "test"}))
    (folder / "cache-1.arrow").write_bytes(b"x")
    assert listed(folder, split="test").lines == [
        "a Dataset saved to disk, split 'test': 1 file",
        "columns of its set_format, which is passed over: n",
        "files of the folder that are not read: cache-1.arrow",
    ]


def break_state(**fields: Any) -> Any:
    def change(folder: Path) -> None:
        state = json.loads((folder / "state.json").read_text())
        (folder / "state.json").write_text(json.dumps({**state, **fields}))

    return change


@pytest.mark.parametrize(
    ("change", "options", "expected"),
    [
        (lambda folder: (folder / "state.json").write_text("{"), {}, "it is no JSON"),
        (lambda folder: (folder / "state.json").write_text("[]"), {}, "it holds no object"),
        (lambda folder: next(folder.glob("*.arrow")).unlink(), {}, "must hold every file"),
        (
            lambda folder: next(folder.glob("*.arrow")).write_bytes(b"x" * 20),
            {},
            "must be a readable arrow file",
        ),
        (break_state(_data_files=[]), {}, "is a dataset without one"),
        (break_state(_data_files=[{"filename": 3}]), {}, "names no files"),
        (break_state(_data_files=[{"filename": "a", "skip": 1}]), {}, "takes parts of files"),
        (lambda folder: None, {"split": "test"}, "must be left out for a Dataset saved to disk"),
        (lambda folder: None, {"subset": "x"}, "must be null for a folder saved to disk"),
        (lambda folder: (folder / "dataset_dict.json").write_text("{}"), {}, "it lists no splits"),
        (
            lambda folder: (folder / "dataset_dict.json").write_text('{"splits": ["a"]}'),
            {},
            "must be one of [a]",
        ),
        (
            lambda folder: (folder / "dataset_dict.json").write_text('{"splits": ["a"]}'),
            {"split": "a"},
            "is missing",
        ),
    ],
)
def test_a_folder_that_is_not_whole_is_a_sentence(
    change: Any, options: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    folder = save(tmp_path / "d")
    change(folder)
    with pytest.raises(DataError) as refused:
        read(folder, **options)
    assert expected in str(refused.value)
