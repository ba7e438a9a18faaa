from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import datasets
import pytest
import zstandard

from trainer.config.data import ColumnsConfig, Format, SourceConfig, TokenValue
from trainer.data.rows.files import list_files
from trainer.data.rows.hub import open_dataset, read_dataset
from trainer.data.rows.source import read_files
from trainer.errors import DataError

LINES = '{"text": "one"}\n{"text": "two"}\n'


def read(source: SourceConfig, tmp_path: Path) -> list[Any]:
    rows = read_files("s", source, list_files("s", source))
    columns = rows.source.columns
    column = columns.messages if source.format is Format.chat else columns.text
    return [row[column] for batch in rows.batches() for row in batch.rows]


def write(path: Path, content: str) -> SourceConfig:
    data = content.encode()
    if path.suffix == ".gz":
        data = gzip.compress(data)
    elif path.suffix == ".zst":
        data = zstandard.compress(data)
    path.write_bytes(data)
    return SourceConfig(path=str(path))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", LINES),
        ("a.jsonl", "\ufeff" + LINES.replace("\n", "\r\n\r\n")),
        ("a.jsonl.gz", LINES),
        ("a.jsonl.zst", LINES),
        ("a.json", LINES),
        ("a.json", '[{"text": "one"},\n {"text": "two"}]'),
        ("a.json", '{"id1": {"text": "one"}, "id2": {"text": "two"}}'),
        ("a.csv", "text,n\none,1\ntwo,2\n"),
        ("a.csv.gz", "text,n\none,1\ntwo,2\n"),
    ],
)
def test_every_kind_of_file_gives_the_same_rows(name: str, content: str, tmp_path: Path) -> None:
    assert read(write(tmp_path / name, content), tmp_path) == ["one", "two"]


def test_parquet_rows_lose_the_keys_that_other_rows_brought(tmp_path: Path) -> None:
    call = {"function": {"name": "f", "arguments": {"a": 1}}}
    rows = [
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": [call]}],
    ]
    datasets.Dataset.from_dict({"messages": rows}).to_parquet(str(tmp_path / "a[1].parquet"))
    source = SourceConfig(path=str(tmp_path), format=Format.chat)
    first, second = read(source, tmp_path)
    assert first == rows[0]
    assert second[1]["tool_calls"] == [call] and "tool_calls" not in second[0]


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_texts_that_look_like_something_else_stay_texts(kind: str, tmp_path: Path) -> None:
    """A failure points at a reader that guesses types, as the JSON reader of `datasets` does."""
    texts = ["2020-01-01", "007", "NA", "1e5"]
    lines = [json.dumps({"text": t}) for t in texts] if kind == "jsonl" else ["text", *texts]
    assert read(write(tmp_path / f"a.{kind}", "\n".join(lines)), tmp_path) == texts


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        ("file", ["a\n\n \nb\nc\n"]),
        ("line", ["a", "", " ", "b", "c"]),
        ("paragraph", ["a", "b\nc\n"]),
    ],
)
def test_a_txt_file_is_one_document_or_its_lines_or_its_paragraphs(
    documents: str, expected: list[str], tmp_path: Path
) -> None:
    source = write(tmp_path / "a.txt", "a\n\n \nb\nc\n")
    source.txt_documents = documents
    assert read(source, tmp_path) == expected


@pytest.mark.parametrize(("documents", "num_told"), [("file", 1), ("line", 0)])
def test_a_txt_file_that_is_read_as_one_document_is_told_in_a_line(
    documents: str, num_told: int, tmp_path: Path
) -> None:
    source = write(tmp_path / "a.txt", "a\nb\n")
    source.txt_documents = documents
    rows = read_files("s", source, list_files("s", source))
    assert list(rows.batches())
    lines = [line for line in rows.reading.to_lines() if "data.sources.NAME.txt_documents" in line]
    assert len(lines) == num_told


def test_folders_and_globs_are_read_in_the_order_of_their_paths(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    write(folder / "b.txt", "2")
    write(folder / "a.jsonl", '{"text": "1"}')
    write(folder / "sub" / "c.txt", "3")
    write(folder / ".hidden.txt", "no")
    (folder / "README.md").write_text("no")
    assert read(SourceConfig(path=str(folder)), tmp_path) == ["1", "2", "3"]
    assert read(SourceConfig(path=str(folder / "**" / "*.txt")), tmp_path) == ["2", "3"]


def test_rows_carry_the_line_they_came_from(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", '{"text": "one"}\n\n{"text": "two"}\n')
    (batch,) = read_files("s", source, list_files("s", source)).batches()
    assert batch.where(1) == f"{tmp_path}/a.jsonl, line 3"


def test_max_documents_stops_reading_there(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", LINES + "not json\n")
    write(tmp_path / "b.jsonl", LINES)
    source.max_documents = 2
    assert read(source, tmp_path) == ["one", "two"]
    source.path = str(tmp_path / "b*.jsonl")
    source.max_documents = 1
    assert read(source, tmp_path) == ["one"]


@pytest.mark.parametrize(
    ("name", "content", "columns", "fix"),
    [
        (
            "a.jsonl",
            '{"body": "x", "n": 1}\n',
            "body, n",
            "Say which it is: data.sources.s.columns.text=body.",
        ),
        ("a.csv", "body,n\nx,1\n", "body, n", "Say which it is: data.sources.s.columns.text=body."),
        ("a.csv", "body,id\nx,1\n", "body, id", "Say which it is: data.sources.s.columns.text=body."),
        ("a.csv", "texts,id\nx,1\n", "texts, id", "Set data.sources.s.columns.text=texts, if that is it."),
        ("a.jsonl", LINES + '{"body": "x"}\n', "body", "Mend or remove that row."),
    ],
)
def test_a_missing_column_is_named_beside_those_there_are_with_what_to_set(
    name: str, content: str, columns: str, fix: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        read(write(tmp_path / name, content), tmp_path)
    message = str(caught.value)
    assert message.startswith(f"`data.sources.s.columns.text` must name a column of {name}")
    assert message.endswith(f"but is 'text' instead; the columns are [{columns}]. {fix}")


@pytest.mark.parametrize("format_", [Format.chat, Format.completion])
def test_two_columns_of_other_names_are_told_as_prompt_and_answer(format_: Format, tmp_path: Path) -> None:
    """A file of questions and answers in another language: the fix is to be copied."""
    source = write(tmp_path / "a.csv", "id,frage,antwort\n1,Wer?,Ich.\n")
    source.format = format_
    with pytest.raises(DataError) as caught:
        read(source, tmp_path)
    as_chat = "data.sources.s.format=completion data.sources.s.as_chat=true " * (format_ is Format.chat)
    columns = "data.sources.s.columns.prompt=frage data.sources.s.columns.completion=antwort"
    assert f"such as {as_chat}{columns}; data=prompt_completion is such a source." in str(caught.value)


def test_an_optional_column_that_no_row_has_is_a_mistake(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", '{"messages": []}\n')
    source.format, source.columns = Format.chat, ColumnsConfig(tools="tolls")
    with pytest.raises(DataError, match=r"columns\.tools.*'tolls'"):
        read(source, tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", LINES + '\n{"text": "x" "y"}\n', "a.jsonl, line 4 must be a JSON object"),
        ("a.jsonl.gz", LINES + "[1]\n", "a.jsonl.gz, line 3 must be a JSON object, but is a list"),
        ("a.json", '[{"text": "one"},\n {"text": }]', "a.json, line 2 must be valid JSON"),
        ("a.parquet", "no parquet", "a.parquet must be a readable parquet file"),
    ],
)
def test_a_broken_file_is_named_with_the_line(name: str, content: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read(write(tmp_path / name, content), tmp_path)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.txt", b"one\ntwo\ncaf\xe9 ", r"a\.txt, line 3, must be UTF-8, but has the byte 0xe9 instead"),
        (
            "a.jsonl.gz",
            gzip.compress(LINES.encode() + b'{"text": "\xff"}', mtime=0),
            r"a\.jsonl\.gz, line 3, must be UTF-8",
        ),
        ("a.csv", b"text\n" + b"x\n" * 40_000 + b"caf\xe9\n", r"a\.csv, line 40002, must be UTF-8"),
        ("a.json", b'[{"text": "a"},\n{"text": "\xc3"}]', r"a\.json, line 2, must be UTF-8"),
        ("a.jsonl.gz", b"no gzip", "must be compressed as its name says"),
        ("a.jsonl.gz", gzip.compress(LINES.encode() * 99, mtime=0)[:-12], "cannot be read"),
        ("a.jsonl.zst", b"no zstd", "must be compressed as its name says"),
        ("a.jsonl.zst", zstandard.compress(LINES.encode() * 99)[:-2], "cannot be read"),
    ],
)
def test_bytes_that_cannot_be_decoded_are_named_with_the_file(
    name: str, data: bytes, said: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=said):
        read(SourceConfig(path=str(tmp_path / name)), tmp_path)


@pytest.mark.parametrize("path", ["missing.jsonl", "*.jsonl", "empty", "a.doc"])
def test_a_path_without_files_to_read_is_named_with_its_key(path: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.doc").write_text("x")
    with pytest.raises(DataError, match=r"data\.sources\.s\.path"):
        read(SourceConfig(path=str(tmp_path / path)), tmp_path)


def test_a_zst_file_of_several_frames_is_read_to_its_end(tmp_path: Path) -> None:
    big = "".join(f'{{"text": "{i}"}}\n' for i in range(100_000))
    frames = zstandard.compress(big.encode()) + zstandard.compress(LINES.encode())
    (tmp_path / "a.jsonl.zst").write_bytes(frames)
    texts = read(SourceConfig(path=str(tmp_path / "a.jsonl.zst")), tmp_path)
    assert texts == [*map(str, range(100_000)), "one", "two"]


def test_a_hub_dataset_whose_values_may_be_guesses_is_refused(tmp_path: Path) -> None:
    """Folders stand for hub names here: `datasets` resolves both."""
    for name, content in (("csv", "text\n007\n"), ("jsonl", '{"text": "2020-01-01"}\n')):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"train.{name}").write_text(content)
    source = SourceConfig(dataset=str(tmp_path / "csv"))
    with pytest.raises(DataError, match="holds CSV instead"):
        open_dataset("s", source, tmp_path / "cache")
    source.dataset = str(tmp_path / "jsonl")
    rows = read_dataset("s", source, open_dataset("s", source, tmp_path / "cache"))
    with pytest.raises(
        DataError, match=r"column 'text', but holds the type timestamp.*data\.sources\.s\.path"
    ):
        list(rows.batches())


def test_a_hub_dataset_is_read_without_the_nulls_of_its_structs(tmp_path: Path) -> None:
    rows = [[{"role": "user", "content": "a"}], [{"role": "user", "name": "n"}]]
    made = datasets.Dataset.from_dict({"messages": rows, "id": [1, 2]})
    read = read_dataset("s", SourceConfig(dataset="x", format=Format.chat), made)
    assert [row["messages"] for batch in read.batches() for row in batch.rows] == rows
    assert read.reading.to_lines() == ["columns that are not read: id"]


@pytest.mark.parametrize("rows", [50, 300])
@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"text": "txt"}, "`data.sources.corpus.columns.text` must name a column of rows.jsonl"),
        ({"weight": "worth"}, "columns.weight` must name a column that some row has, but is 'worth'"),
    ],
)
def test_the_first_rows_tell_of_a_column_that_is_not_there(tmp_path, rows, columns, said):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": "a", "worht": 1}) + "\n" for _ in range(rows)))
    source = SourceConfig(path=str(file), columns=ColumnsConfig(**columns))
    with pytest.raises(DataError, match=re.escape(said)):
        read_files("corpus", source, list_files("corpus", source), [TokenValue.weight]).look()


def test_a_look_at_the_first_rows_does_not_judge_those_that_come_later(tmp_path):
    file = tmp_path / "rows.jsonl"
    late = [{"text": "a", "id": 1}] * 200 + [{"text": "a", "share": 2}] * 200
    file.write_text("".join(json.dumps(row) + "\n" for row in late))
    source = SourceConfig(path=str(file), columns=ColumnsConfig(weight="share"))
    read_files("corpus", source, list_files("corpus", source), [TokenValue.weight]).look()


def test_both_columns_of_pairs_that_are_not_there_are_told(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    columns = ColumnsConfig(prompt="promt", completion="compltion")
    source = SourceConfig(path=str(file), format=Format.completion, columns=columns)
    with pytest.raises(
        DataError, match="but is 'promt' instead, and completion is 'compltion'; the columns are"
    ):
        read_files("corpus", source, list_files("corpus", source)).look()


@pytest.mark.parametrize("format_", [Format.preference, Format.unpaired])
def test_the_first_rows_of_preferences_are_looked_at_as_such(tmp_path, format_):
    """`train` looks at them before anything is loaded."""
    file = tmp_path / "rows.jsonl"
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    if format_ is Format.unpaired:
        row = {"prompt": "a", "completion": "b", "label": True}
    file.write_text(json.dumps(row) + "\n")
    source = SourceConfig(path=str(file), format=format_, as_chat=True)
    values = [TokenValue.label]
    read_files("pairs", source, list_files("pairs", source), values).look()
    file.write_text("".join(json.dumps(one) + "\n" for one in (row, row | {"prompt": 3})))
    with pytest.raises(
        DataError, match=r"`data.sources.pairs` must hold text in column 'prompt', but 1 of 2 rows"
    ):
        read_files("pairs", source, list_files("pairs", source), values).look()
