from __future__ import annotations

import gzip
import importlib.util
import io
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from huggingface_hub import HfFileSystem
from rich.console import Console

from tests.helpers.hub_server import HubServer, connected_hub
from tests.helpers.object_store import ObjectStore, running_store
from tests.helpers.tokenizers import make_tokenizer
from trainer.config.data import CleanConfig, DataConfig, Format, SourceConfig
from trainer.data.prepare import prepare
from trainer.data.remote import address, fetched
from trainer.data.rows.files import list_files, stat_files
from trainer.data.rows.source import read_files
from trainer.data.store.prepared import find_prepared, find_store
from trainer.data.store.store import Store
from trainer.errors import DataError

LINES = b'{"text": "one"}\n{"text": "two"}\n'
NEEDS_S3FS = pytest.mark.skipif(importlib.util.find_spec("s3fs") is None, reason="needs s3fs")
NEEDS_GCSFS = pytest.mark.skipif(importlib.util.find_spec("gcsfs") is None, reason="needs gcsfs")


class FlakyFileSystem(MemoryFileSystem):
    """Memory behind a line that breaks when it is told to."""

    protocol = "flaky"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    errors: ClassVar[list[Exception]] = []
    """Raised by the next reads, one each."""
    short = 0
    """So many bytes of the next read are lost."""
    ranges: ClassVar[list[tuple[int, int]]] = []

    def cat_file(self, path: str, start: Any = None, end: Any = None, **kwargs: Any) -> bytes:
        if self.errors:
            raise self.errors.pop(0)
        self.ranges.append((start, end))
        lost, FlakyFileSystem.short = self.short, 0
        content: bytes = super().cat_file(path, start, end, **kwargs)
        return content[: len(content) - lost]


fsspec.register_implementation("flaky", FlakyFileSystem)


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two empty stores, and no waiting between tries."""
    monkeypatch.setattr(address, "LOOK_WAITS_S", (0.0,) * 2)
    monkeypatch.setattr("trainer.data.remote.listed.LOOK_WAITS_S", (0.0,) * 2)
    monkeypatch.setattr(fetched, "WAITS_S", (0.0,) * 4)
    FlakyFileSystem.errors, FlakyFileSystem.short, FlakyFileSystem.ranges = [], 0, []
    yield fsspec.filesystem("memory")
    for system in (MemoryFileSystem, FlakyFileSystem):
        system.store.clear()
        system.pseudo_dirs[:] = [""]


def put(address: str, content: bytes) -> str:
    with fsspec.open(address, "wb") as file:
        file.write(content)
    return address


def read(path: str, **options: Any) -> list[Any]:
    source = SourceConfig(path=path, **options)
    rows = read_files("s", source, list_files("s", source))
    return [row[rows.source.columns.text] for batch in rows.batches() for row in batch.rows]


def data_of(tmp_path: Path, path: str, **options: Any) -> DataConfig:
    source = SourceConfig(path=path, **options)
    return DataConfig(
        sources={"s": source},
        seq_len=64,
        validation_frac=0.0,
        num_workers=1,
        cache_dir=str(tmp_path / "cache"),
    )


def build(data: DataConfig, show: Any = None) -> Store:
    tokenizer = make_tokenizer()
    return prepare(data, tokenizer, lambda: tokenizer, None, Console(file=show or io.StringIO(), width=200))[
        "s"
    ]


def parquet(texts: list[str]) -> bytes:
    made = io.BytesIO()
    pq.write_table(pa.table({"text": texts, "n": list(range(len(texts)))}), made)
    return made.getvalue()


def arrow(texts: list[str]) -> bytes:
    made = io.BytesIO()
    table = pa.table({"text": texts})
    with pa.ipc.new_file(made, table.schema) as writer:
        writer.write_table(table)
    return made.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", LINES),
        ("a.jsonl.gz", gzip.compress(LINES, mtime=0)),
        ("a.json", b'[{"text": "one"}, {"text": "two"}]'),
        ("a.json", LINES),
        ("a.csv", b"text,n\none,1\ntwo,2\n"),
        ("a.csv.gz", gzip.compress(b"sep=;\ntext;n\none;1\ntwo;2\n", mtime=0)),
        ("a.parquet", parquet(["one", "two"])),
        ("a.arrow", arrow(["one", "two"])),
    ],
)
def test_every_kind_of_file_is_read_behind_an_address_as_here(
    name: str, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure points at a reader that opens paths by itself, or at a block border."""
    monkeypatch.setattr(fetched, "BLOCK_BYTES", 7)
    assert read(put(f"memory://d/{name}", content)) == ["one", "two"]
    (tmp_path / name).write_bytes(content)
    assert read(f"file://{tmp_path / name}") == ["one", "two"]


def test_the_store_of_an_address_is_the_store_of_the_same_files_here(tmp_path: Path) -> None:
    """Its digest is that of the content, so copies of data are the same data."""
    for name, content in (("a.jsonl", LINES), ("b.parquet", parquet(["three"])), ("c.csv", b"text\nfour\n")):
        (tmp_path / "here").mkdir(exist_ok=True)
        (tmp_path / "here" / name).write_bytes(content)
        put(f"memory://d/{name}", content)
    shown = io.StringIO()
    far = build(data_of(tmp_path, "memory://d/*"), shown)
    assert far.digest == build(data_of(tmp_path, str(tmp_path / "here"))).digest
    assert "3 of 3 files fetched whole" in shown.getvalue()
    assert sorted(path.name for path in (tmp_path / "cache" / "stores").iterdir()) == [far.digest]


def test_every_byte_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetched, "BLOCK_BYTES", 16)
    for name, content in (
        ("a.jsonl", LINES),
        ("b.csv", b"text\n" + b"word\n" * 20),
        ("c.parquet", parquet(["x"])),
    ):
        put(f"flaky://d/{name}", content)
        FlakyFileSystem.ranges = []
        store = build(data_of(tmp_path, f"flaky://d/{name}"))
        assert store.meta["counts"]["rows"] > 0
        starts = [start for start, _ in FlakyFileSystem.ranges]
        assert sorted(starts) == list(range(0, len(content), 16)), name


def test_a_line_that_breaks_is_tried_again_from_where_it_broke(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fetched, "BLOCK_BYTES", 16)
    put("flaky://d/a.jsonl", LINES)
    FlakyFileSystem.errors = [ConnectionResetError("reset by peer"), TimeoutError()]
    FlakyFileSystem.short = 3
    assert read("flaky://d/a.jsonl") == ["one", "two"]
    assert FlakyFileSystem.ranges == [(0, 16), (0, 16), (16, 32)]
    told = capsys.readouterr().out
    assert "flaky://d/a.jsonl: reset by peer; try 2 of 5" in told and "13 bytes came of 16" in told


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionResetError("reset"), "ConnectionResetError: reset"),
        (PermissionError("Access Denied"), "may not: Access Denied. Give credentials"),
        (FileNotFoundError("gone"), "there is none"),
    ],
)
def test_what_does_not_pass_is_a_sentence_with_key_and_address(error: Exception, expected: str) -> None:
    put("flaky://d/a.jsonl", LINES)
    FlakyFileSystem.errors = [error] * 5
    with pytest.raises(DataError) as refused:
        read("flaky://d/a.jsonl")
    assert "`data.sources.s.path`" in str(refused.value) and expected in str(refused.value)
    assert len(FlakyFileSystem.errors) == (0 if isinstance(error, ConnectionResetError) else 4)


def test_a_host_that_does_not_answer_is_not_taken_for_a_missing_file() -> None:
    """fsspec raises FileNotFoundError for both."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(DataError, match="cannot be: ClientConnectorError"):
        list_files("s", SourceConfig(path=f"http://127.0.0.1:{port}/a.jsonl"))


def test_broken_rows_are_named_with_address_and_line() -> None:
    put("memory://d/a.jsonl", LINES + b"{\n")
    with pytest.raises(DataError, match=r"memory://+d/a.jsonl, line 3 must be a JSON object"):
        read("memory://d/a.jsonl")
    put("memory://d/b.jsonl.gz", gzip.compress(LINES, mtime=0)[:-9])
    with pytest.raises(DataError, match=r"memory://+d/b.jsonl.gz cannot be read"):
        read("memory://d/b.jsonl.gz")


@pytest.mark.parametrize(
    ("path", "options", "expected"),
    [
        ("memory://d/none-*.jsonl", {}, "must name a file, a folder or a glob"),
        ("memory://nowhere/a.jsonl", {}, "there is none"),
        ("memory://d/a.bin", {}, "matches 'memory://"),
        ("memory://saved", {}, "as `save_to_disk` writes it"),
        ("memory://only", {}, "has only [a.md]"),
        ("memory://d/a.jsonl", {"split": "test"}, "must be left out where `path` names files"),
        ("nothing://d/a.jsonl", {}, "that fsspec knows"),
        (
            "memory://splits",
            {"split": "dev"},
            "must be one of [test, train], the splits of 'memory://splits'",
        ),
    ],
)
def test_addresses_that_name_nothing_to_read_are_refused(
    path: str, options: dict[str, Any], expected: str
) -> None:
    for name in ("d/a.jsonl", "d/a.bin", "saved/state.json", "saved/data.arrow", "only/a.md"):
        put(f"memory://{name}", LINES)
    for name in ("train.jsonl", "test.jsonl"):
        put(f"memory://splits/{name}", LINES)
    with pytest.raises(DataError) as refused:
        list_files("s", SourceConfig(path=path, **options))
    assert expected in str(refused.value)


def test_a_package_that_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
    with pytest.raises(DataError, match=r"pip install 'palimpsest-trainer\[gs\]'"):
        list_files("s", SourceConfig(path="gs://bucket/a.jsonl"))


def test_of_a_folder_one_split_is_read_and_the_rest_is_named() -> None:
    for name in ("train-00000-of-00001.jsonl", "test-00000-of-00001.jsonl", "notes.md", ".hidden.jsonl"):
        put(f"memory://d/{name}", LINES)
    listing = list_files("s", SourceConfig(path="memory://d", split="test"))
    assert [file.name for file in listing.files] == ["test-00000-of-00001.jsonl"]
    assert any("not read (other splits: train)" in line for line in listing.lines)
    assert "files of the folder that are not read: notes.md" in listing.lines
    readme = "---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: train, path: test-*}\n---\n"
    put("memory://d/README.md", readme.encode())
    listing = list_files("s", SourceConfig(path="memory://d"))
    assert [file.name for file in listing.files] == ["test-00000-of-00001.jsonl"]


def test_a_store_is_found_without_reading_and_not_after_a_change(tmp_path: Path) -> None:
    data, tokenizer = data_of(tmp_path, put("flaky://d/a.jsonl", LINES)), make_tokenizer()
    first = build(data)
    FlakyFileSystem.ranges = []
    assert build(data).digest == first.digest and FlakyFileSystem.ranges == []
    put("flaky://d/a.jsonl", LINES)  # a new time, the same bytes
    assert find_store("s", data.sources["s"], data, tokenizer) is None
    assert build(data).digest == first.digest
    put("flaky://d/a.jsonl", LINES.replace(b"one", b"six"))
    with pytest.raises(DataError, match="must be prepared before training"):
        find_prepared("s", data.sources["s"], data, tokenizer)
    assert build(data).digest != first.digest


def test_an_address_that_cannot_be_asked_is_taken_for_what_was_prepared_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, tokenizer = data_of(tmp_path, put("flaky://d/a.jsonl", LINES)), make_tokenizer()
    store = build(data)

    def broken(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(FlakyFileSystem, "info", broken)
    assert find_prepared("s", data.sources["s"], data, tokenizer).name == store.digest
    assert "no route to host" in (told := capsys.readouterr().out) and "when it was prepared" in told
    data.sources["s"].clean = CleanConfig(strip=False)
    with pytest.raises(DataError, match="no route to host"):
        build(data)


def test_of_a_source_that_is_read_in_part_no_more_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetched, "BLOCK_BYTES", 16)
    put("flaky://d/a.jsonl", LINES * 50)
    put("flaky://d/b.jsonl", LINES)
    store = build(data_of(tmp_path, "flaky://d/*.jsonl", max_documents=3))
    assert store.meta["counts"]["rows"] == 3 and max(end for _, end in FlakyFileSystem.ranges) < 200
    assert all("created" in file for file in store.meta["descriptor"]["origin"])


def test_a_file_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put("flaky://d/a.jsonl", LINES)
    whole = FlakyFileSystem.cat_file

    def changing(self: Any, path: str, *args: Any, **kwargs: Any) -> bytes:
        content = whole(self, path, *args, **kwargs)
        put("flaky://d/a.jsonl", LINES + LINES)
        return content

    monkeypatch.setattr(FlakyFileSystem, "cat_file", changing)
    with pytest.raises(DataError, match="must not change while they are read"):
        build(data_of(tmp_path, "flaky://d/a.jsonl"))
    assert list((tmp_path / "cache" / "stores").iterdir()) == []


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    import s3fs

    for name, value in (("ACCESS_KEY_ID", "k"), ("SECRET_ACCESS_KEY", "s"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    with running_store() as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.address)
        yield running
    s3fs.S3FileSystem.clear_instance_cache()


@NEEDS_S3FS
def test_files_of_an_s3_store_are_found_read_and_compared(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetched, "BLOCK_BYTES", 32)
    rows = b"".join(json.dumps({"text": f"document {i}"}).encode() + b"\n" for i in range(9))
    store.objects = {
        "b/d/train-1.jsonl.gz": gzip.compress(rows, mtime=0),
        "b/d/train-2.parquet": parquet(["x", "y"]),
        "b/d/test.jsonl": LINES,
        "b/e/other.jsonl": LINES,
    }
    data = data_of(tmp_path, "s3://b/d")
    made = build(data)
    assert made.meta["counts"]["rows"] == 11
    origins = made.meta["descriptor"]["origin"]
    assert [origin.partition(":")[0] for origin in origins] == ["jsonl", "parquet"]
    assert all(len(origin.partition(":")[2]) == 64 for origin in origins)
    num_reads = len(store.reads)
    assert build(data).digest == made.digest and len(store.reads) == num_reads
    assert read("s3://b/*/*.jsonl", format=Format.text) == ["one", "two"] * 2
    (identity,) = stat_files(list_files("s", SourceConfig(path="s3://b/d/test.jsonl")))
    assert identity[:2] == ["s3://b/d/test.jsonl", len(LINES)] and list(identity[2]) == ["ETag"]


@NEEDS_S3FS
def test_failures_of_an_s3_store_are_tried_again_or_told(store: ObjectStore) -> None:
    store.objects = {"b/a.jsonl": LINES}
    store.failures = [500, 503]
    assert read("s3://b/a.jsonl") == ["one", "two"] and store.failures == []
    with pytest.raises(DataError, match="there is none"):
        read("s3://b/none.jsonl")
    store.denies = True
    with pytest.raises(DataError, match="Set AWS_PROFILE"):
        read("s3://b/a.jsonl")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub that huggingface_hub's own file system asks."""
    HfFileSystem.clear_instance_cache()
    with connected_hub(monkeypatch) as connected:
        yield connected
    HfFileSystem.clear_instance_cache()


def test_files_of_a_dataset_of_the_hub_are_found_read_once_and_compared(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetched, "BLOCK_BYTES", 16)
    files = {
        "README.md": b"# A dataset",
        "data/train-00000-of-00002.jsonl.gz": gzip.compress(LINES, mtime=0),
        "data/train-00001-of-00002.parquet": parquet(["x", "y", "z"]),
        "data/test-00000-of-00001.jsonl": LINES,
    }
    hub.datasets["o/n"] = files
    data = data_of(tmp_path, "hf://datasets/o/n", split="train")
    made = build(data)
    assert made.meta["counts"]["rows"] == 5
    blocks = [(name, at) for name in files if "train" in name for at in range(0, len(files[name]), 16)]
    assert sorted(read for read in hub.reads if "train" in read[0]) == sorted(blocks)
    assert {name for name, _ in hub.reads} == {"README.md", *(name for name, _ in blocks)}
    hub.reads.clear()
    assert build(data).digest == made.digest and {name for name, _ in hub.reads} <= {"README.md"}
    assert read("hf://datasets/o/n/data/*.jsonl") == ["one", "two"]
    (identity,) = stat_files(
        list_files("s", SourceConfig(path="hf://datasets/o/n/data/test-00000-of-00001.jsonl"))
    )
    assert identity[1] == len(LINES) and list(identity[2]) == ["blob_id"]
    files["data/train-00000-of-00002.jsonl.gz"] = gzip.compress(LINES + LINES, mtime=0)
    assert build(data).digest != made.digest


def test_what_the_hub_does_not_give_is_a_sentence(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.datasets["o/n"] = {"a.jsonl": LINES}
    with pytest.raises(DataError, match="there is none"):
        read("hf://datasets/o/n/b.jsonl")
    monkeypatch.setenv("HF_TOKEN", "hf_of-nobody")
    HfFileSystem.clear_instance_cache()
    with pytest.raises(DataError, match="Set HF_TOKEN or run hf auth login"):
        read("hf://datasets/o/n/a.jsonl")


@pytest.fixture
def google(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    # Else it asks Google's own servers of what kind the bucket is.
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    import gcsfs

    gcsfs.GCSFileSystem.clear_instance_cache()
    with running_store() as running:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", running.address)
        yield running
    gcsfs.GCSFileSystem.clear_instance_cache()


@NEEDS_GCSFS
def test_files_of_a_google_store_are_found_read_once_and_compared(
    google: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetched, "BLOCK_BYTES", 16)
    google.objects = {
        "b/d/train-1.jsonl.gz": gzip.compress(LINES, mtime=0),
        "b/d/train-2.parquet": parquet(["x", "y"]),
        "b/d/test.jsonl": LINES,
        "b/e/other.jsonl": LINES,
    }
    data = data_of(tmp_path, "gs://b/d")
    made = build(data)
    assert made.meta["counts"]["rows"] == 4
    wanted = [
        (path, f"bytes={at}-{min(at + 16, len(content)) - 1}")
        for path, content in google.objects.items()
        if "train" in path
        for at in range(0, len(content), 16)
    ]
    assert sorted(google.reads) == sorted(wanted)
    google.reads.clear()
    assert build(data).digest == made.digest and not google.reads
    assert read("gs://b/*/*.jsonl", format=Format.text) == ["one", "two"] * 2
    (identity,) = stat_files(list_files("s", SourceConfig(path="gs://b/d/test.jsonl")))
    assert identity[:2] == ["gs://b/d/test.jsonl", len(LINES)] and list(identity[2]) == ["etag", "generation"]


@NEEDS_GCSFS
def test_what_a_google_store_does_not_give_is_a_sentence_at_once(
    google: ObjectStore, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its package has no error of its own for what may not be read."""
    google.objects = {"b/a.jsonl": LINES}
    with pytest.raises(DataError, match="there is none"):
        read("gs://b/none.jsonl")
    google.denies = True
    with pytest.raises(DataError, match="Set GOOGLE_APPLICATION_CREDENTIALS, or run gcloud"):
        read("gs://b/a.jsonl")
    assert "try 2" not in capsys.readouterr().out
