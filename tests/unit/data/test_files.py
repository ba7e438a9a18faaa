"""Which files of a folder or a glob are read, and what is said of the others."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from trainer.config.data import SourceConfig
from trainer.data.rows.files import Listing, list_files
from trainer.errors import DataError


def make(top: Path, *names: str) -> Path:
    for name in names:
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    return top


def listed(path: Path, **options: Any) -> tuple[list[str], list[str]]:
    """Return the names of the files that are read, and what is said."""
    listing: Listing = list_files("s", SourceConfig(path=str(path), **options))
    top = path if path.is_dir() else path.parent
    return [os.path.relpath(file, top) for file in listing.files], listing.lines


# ---- folders


def test_files_that_no_reader_takes_are_named(tmp_path: Path) -> None:
    make(
        tmp_path, "a.jsonl", "b.jsonl.bz2", "c.csv.xz", "d.TSV", "e.zip", "f.tar.gz", "README.md", ".h.jsonl"
    )
    make(tmp_path, "g.jsonl.lz4", "sub/h.parquet.gz", "dataset_infos.json", ".git/x.json")
    files, lines = listed(tmp_path)
    assert files == ["a.jsonl", "b.jsonl.bz2", "c.csv.xz", "d.TSV"]
    unread = "README.md, dataset_infos.json, e.zip, f.tar.gz, g.jsonl.lz4, sub/h.parquet.gz"
    assert lines == [f"files of the folder that are not read: {unread}"]


def test_many_unread_files_are_a_line_and_no_wall(tmp_path: Path) -> None:
    make(tmp_path, "a.jsonl", *(f"{i:03}.md" for i in range(300)))
    _, (line,) = listed(tmp_path)
    assert line.endswith("007.md and 292 more")


def test_a_folder_of_unread_files_only_is_refused_with_their_names(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has only \[data\.zip\]"):
        listed(make(tmp_path, "data.zip"))


def test_links_to_folders_and_files_are_followed(tmp_path: Path) -> None:
    make(tmp_path, "real/a.jsonl", "elsewhere/b.jsonl", "in/c.jsonl")
    (tmp_path / "in" / "link").symlink_to("../real")
    (tmp_path / "in" / "d.jsonl").symlink_to("../elsewhere/b.jsonl")
    (tmp_path / "door").symlink_to("in")
    assert listed(tmp_path / "in") == (["c.jsonl", "d.jsonl", "link/a.jsonl"], [])
    assert listed(tmp_path / "door") == (["c.jsonl", "d.jsonl", "link/a.jsonl"], [])


def test_links_that_lead_back_or_to_a_folder_beside_give_no_file_twice_and_are_named(tmp_path: Path) -> None:
    make(tmp_path, "b/x.jsonl", "c/y.jsonl")
    (tmp_path / "b" / "up").symlink_to("..")
    (tmp_path / "a").symlink_to("c")
    files, lines = listed(tmp_path)
    assert files == ["b/x.jsonl", "c/y.jsonl"]
    assert lines == ["links to folders that are read already: a, b/up"]


def test_a_link_to_data_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    (make(tmp_path, "a.jsonl") / "b.jsonl").symlink_to("gone.jsonl")
    with pytest.raises(DataError, match=r"b\.jsonl' must be a file, but is a link that leads nowhere"):
        listed(tmp_path)


# ---- globs


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("v[1]/*.jsonl", ["v[1]/a.jsonl"]),
        ("v[1]/[ab].jsonl", ["v[1]/a.jsonl"]),
        ("v[0-9]/*.jsonl", ["v1/b.jsonl"]),
        ("v[[]1]/*.jsonl", ["v[1]/a.jsonl"]),
        ("*/*.jsonl", ["v1/b.jsonl", "v[1]/a.jsonl"]),
        ("**/*.jsonl", ["v1/b.jsonl", "v[1]/a.jsonl"]),
        ("v[1]/a.jsonl", ["v[1]/a.jsonl"]),
    ],
)
def test_a_name_that_is_there_stands_for_itself_in_a_glob(
    pattern: str, expected: list[str], tmp_path: Path
) -> None:
    make(tmp_path, "v[1]/a.jsonl", "v1/b.jsonl")
    files = list_files("s", SourceConfig(path=str(tmp_path / pattern))).files
    assert [str(file.relative_to(tmp_path)) for file in files] == expected


def test_relative_globs_count_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "v[1]/a.jsonl")
    monkeypatch.chdir(tmp_path)
    assert list_files("s", SourceConfig(path="v[1]/*")).files == [Path("v[1]/a.jsonl")]


def test_a_glob_through_a_loop_gives_every_file_once(tmp_path: Path) -> None:
    make(tmp_path, "a/x.jsonl")
    (tmp_path / "a" / "up").symlink_to("..")
    listing = list_files("s", SourceConfig(path=str(tmp_path / "**" / "*.jsonl")))
    assert listing.files == [tmp_path / "a" / "x.jsonl"]
    assert "are the same file as another, and are read once" in listing.lines[0]


def test_a_glob_over_several_splits_reads_them_and_says_so(tmp_path: Path) -> None:
    make(tmp_path, "data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet")
    listing = list_files("s", SourceConfig(path=str(tmp_path / "data" / "*.parquet")))
    assert len(listing.files) == 2
    assert listing.lines == ["the path matches files of several splits, all of them read: test, train"]


@pytest.mark.parametrize("options", [{"split": "test"}, {"subset": "main"}])
def test_a_split_of_named_files_is_a_mistake(options: dict[str, str], tmp_path: Path) -> None:
    (key,) = options
    with pytest.raises(DataError, match=f"data.sources.s.{key}` must be left out"):
        listed(make(tmp_path, "a.jsonl") / "a.jsonl", **options)


# ---- splits


README = """---
license: mit
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
  - split: test
    path: ["data/test-*", held.jsonl]
- config_name: small
  data_files: "small/**"
- config_name: both
  data_files: {train: a.jsonl, dev: [b.jsonl]}
---
# A dataset
"""
HUB = ("README.md", "data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet", "held.jsonl")
HUB += ("small/deep/x.jsonl", "a.jsonl", "b.jsonl")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["data/train-00000-of-00001.parquet"]),
        ({"split": "test"}, ["data/test-00000-of-00001.parquet", "held.jsonl"]),
        ({"subset": "small"}, ["small/deep/x.jsonl"]),
        ({"subset": "both"}, ["a.jsonl"]),
        ({"subset": "both", "split": "dev"}, ["b.jsonl"]),
    ],
)
def test_the_readme_of_a_downloaded_dataset_says_which_files_a_split_has(
    options: dict[str, str], expected: list[str], tmp_path: Path
) -> None:
    (make(tmp_path, *HUB) / "README.md").write_text(README)
    files, lines = listed(tmp_path, **options)
    assert files == expected
    split = options.get("split", "train")
    config = options.get("subset", "default")
    assert lines[0].startswith(f"split '{split}' by its README (config '{config}' of 3): {len(files)} file")
    assert f"{6 - len(files)} files of the folder not read" in lines[0]


def test_a_split_whose_files_are_not_there_is_refused(tmp_path: Path) -> None:
    (make(tmp_path, "held.jsonl", "README.md") / "README.md").write_text(README)
    with pytest.raises(
        DataError, match=r"the files of the split 'train' that its README .* lists, but .* has none"
    ):
        listed(tmp_path)


def test_a_path_that_no_system_takes_is_a_sentence(tmp_path: Path) -> None:
    for path in ("x" * 300, "a\0b"):
        with pytest.raises(DataError, match=r"data\.sources\.s\.path` must name"):
            listed(tmp_path / path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"split": "validation"}, r"split` must be one of \[test, train\]"),
        ({"subset": "large"}, r"subset` must be one of \[default, small, both\]"),
    ],
)
def test_a_split_or_subset_that_the_readme_does_not_list_is_refused(
    options: dict[str, str], said: str, tmp_path: Path
) -> None:
    (make(tmp_path, *HUB) / "README.md").write_text(README)
    with pytest.raises(DataError, match=said):
        listed(tmp_path, **options)


@pytest.mark.parametrize(
    ("names", "options", "expected"),
    [
        (("train.jsonl", "test.jsonl"), {}, ["train.jsonl"]),
        (("train.jsonl", "test.jsonl"), {"split": "test"}, ["test.jsonl"]),
        (("train/0.parquet", "validation/0.parquet"), {"split": "validation"}, ["validation/0.parquet"]),
        (("my_dev_set.csv", "my_training_set.csv"), {}, ["my_training_set.csv"]),
        (("c4-train.00000-of-00002.json.gz", "c4-validation.00000-of-00001.json.gz"), {}, None),
        (
            ("train_sft-00000-of-00001.parquet", "test_sft-00000-of-00001.parquet"),
            {"split": "train_sft"},
            None,
        ),
        (("part-00000-of-00002.parquet", "part-00001-of-00002.parquet"), {}, "all"),
        (("a.jsonl", "latest.jsonl", "contest.jsonl", "training2.txt"), {}, "all"),
        (("test-plan.txt", "notes.txt", "dev.txt"), {}, "all"),
        (("train-1.jsonl", "train-2.jsonl"), {}, "all"),
    ],
)
def test_names_that_tell_a_split_are_taken_at_their_word(
    names: tuple[str, ...], options: dict[str, str], expected: Any, tmp_path: Path
) -> None:
    files, lines = listed(make(tmp_path, *names), **options)
    assert files == (sorted(names) if expected == "all" else expected or [names[0]])
    assert any("not read" in line for line in lines) is (expected != "all")


@pytest.mark.parametrize(
    ("names", "options", "said"),
    [
        (("test-00000-of-00001.parquet",), {}, r"split` must be one of \[test\], .* but is 'train'"),
        (
            ("train_sft-00000-of-00001.parquet", "test_sft-00000-of-00001.parquet"),
            {},
            r"\[test_sft, train_sft\]",
        ),
        (("wiki.jsonl", "test.jsonl"), {}, r"1 file such as 'wiki\.jsonl' beside the splits \[test\]"),
        (("a.jsonl", "b.jsonl"), {"split": "test"}, "neither a README nor names tell splits"),
        (("a.jsonl", "b.jsonl"), {"subset": "main"}, "subset` must be null"),
    ],
)
def test_a_split_that_is_not_clear_is_refused_and_never_guessed(
    names: tuple[str, ...], options: dict[str, str], said: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=said):
        listed(make(tmp_path, *names), **options)


@pytest.mark.parametrize(
    "readme",
    [
        "no header",
        "---\nconfigs: 5\n---\n",
        "---\n{ broken: [\n---\n",
        "---\nlicense: mit\n---\n",
        "\x00\xff",
        "",
    ],
)
def test_a_readme_without_configs_decides_nothing(readme: str, tmp_path: Path) -> None:
    (make(tmp_path, "train.jsonl", "test.jsonl") / "README.md").write_text(readme)
    files, lines = listed(tmp_path)
    assert files == ["train.jsonl"] and "by the names of its files" in lines[0]
