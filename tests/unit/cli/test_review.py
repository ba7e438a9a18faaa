"""What people say of synthetic rows comes back beside the source, and decides whether it is learnt."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from trainer.cli import run_command
from trainer.command.reviewed import is_synthetic, unreviewed
from trainer.config.data import DataConfig, Role, SourceConfig
from trainer.config.schema import RunConfig
from trainer.data.rows.verdicts import read_verdicts, verdicts_file


def write_source(folder: Path, num: int = 12, name: str = "made.jsonl", **more: Any) -> Path:
    file = folder / name
    rows = [{"text": f"row {n}", "provenance": {"model": "m", "seed": n}, **more} for n in range(num)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def export(file: Path, *words: str) -> Path:
    folder = file.parent / "out"
    assert run_command(["data", "review", "export", str(file), f"output={folder}", *words]) == 0
    return folder / f"{file.stem}.csv"


def fill(table: Path, verdicts: list[str]) -> None:
    rows = list(csv.DictReader(io.StringIO(table.read_text())))
    for row, verdict in zip(rows, verdicts, strict=False):
        row["verdict"] = verdict
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def take(file: Path, table: Path, reviewer: str = "anna") -> int:
    return run_command(["data", "review", "import", str(file), str(table), f"reviewer={reviewer}"])


def config_of(**sources: SourceConfig) -> RunConfig:
    return RunConfig(data=DataConfig(sources=sources))


def refusals(file: Path, **options: Any) -> str:
    found = unreviewed(config_of(s=SourceConfig(path=str(file), **options)))
    return found["s"].sentence if found else ""


def test_the_same_seed_draws_the_same_rows_in_their_order(tmp_path: Path) -> None:
    file = write_source(tmp_path)
    first, again = export(file, "num=5", "seed=3").read_text(), export(file, "num=5", "seed=3").read_text()
    assert first == again != export(file, "num=5", "seed=4").read_text()
    lines = [int(row["line"]) for row in csv.DictReader(io.StringIO(first))]
    assert len(lines) == 5 and lines == sorted(set(lines)) and all(1 <= line <= 12 for line in lines)
    assert len(list(csv.DictReader(io.StringIO(export(file, "num=99").read_text())))) == 12


def test_verdicts_lie_beside_the_source_with_reviewer_time_and_interval(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_source(tmp_path)
    table = export(file)
    fill(table, ["accept"] * 9 + ["reject", "No"])
    assert take(file, table) == 0
    said = capsys.readouterr().out
    # Wilson of 9 of 11, worked out by hand: (0.81818 + 0.17461 -+ 0.25453) / 1.34922.
    assert "9 of 11 rows accepted, 81.8% (95 % interval 0.523 to 0.949), by anna" in said
    assert "1 sampled row without a verdict" in said
    kept = read_verdicts(file)
    assert kept is not None and kept.counted() == (9, 11)
    assert kept.verdicts[0].reviewer == "anna" and kept.verdicts[0].time.endswith("Z")
    # A second reader disagrees about two rows: a tie is not accepted. A later word replaces an earlier one.
    fill(table, ["reject", "reject", *[""] * 9])
    assert take(file, table, "ben") == 0
    kept = read_verdicts(file)
    assert kept is not None and kept.counted() == (7, 11) and len(kept.verdicts) == 13
    fill(table, ["accept", "accept", *[""] * 9])
    assert take(file, table, "ben") == 0
    kept = read_verdicts(file)
    assert kept is not None and kept.counted() == (9, 11) and len(kept.verdicts) == 13


def test_a_source_that_nobody_looked_at_is_refused_with_the_command(tmp_path: Path) -> None:
    file = write_source(tmp_path)
    said = refusals(file)
    assert (
        said.startswith("`data.sources.s` must be looked at by people")
        and "made.jsonl has no verdicts" in said
    )
    assert f"palimpsest data review export {file}" in said and "data.sources.s.min_acceptance=null" in said
    assert not refusals(file, min_acceptance=None) and not refusals(file, synthetic=False)
    assert not refusals(file, role=Role.probe)


def test_acceptance_must_reach_the_bound_with_its_lower_end(tmp_path: Path) -> None:
    file = write_source(tmp_path, 30)
    table = export(file)
    fill(table, ["accept"] * 28 + ["reject"] * 2)  # Wilson's lower end: 0.7868
    assert take(file, table) == 0
    said = refusals(file)
    assert said.startswith("`data.sources.s.min_acceptance` must be reached") and "0.787 to 0.982" in said
    assert not refusals(file, min_acceptance=0.75)
    fill(table, ["accept"] * 30)
    assert take(file, table) == 0 and not refusals(file)


def test_rows_that_changed_after_their_verdicts_are_refused(tmp_path: Path) -> None:
    file = write_source(tmp_path, 30)
    table = export(file)
    fill(table, ["accept"] * 30)
    assert take(file, table) == 0 and not refusals(file)
    file.write_text(file.read_text().replace("row 3", "other"))
    assert "made.jsonl has changed since its verdicts were given" in refusals(file)
    # Imported for the file as it is, those of rows that are the same stay.
    fresh = export(file)
    fill(fresh, ["accept"])
    assert take(file, fresh, "ben") == 0
    kept = read_verdicts(file)
    assert kept is not None
    assert {one.line for one in kept.verdicts if one.reviewer == "anna"} == {*range(1, 31)} - {4}


def test_what_is_synthetic_is_seen_in_the_rows_or_said(tmp_path: Path) -> None:
    made, plain = write_source(tmp_path), tmp_path / "plain.jsonl"
    plain.write_text('{"text": "a", "provenance": {"url": "x"}}\n{"text": "b"}\n')
    assert is_synthetic("s", SourceConfig(path=str(made)))
    assert not is_synthetic("s", SourceConfig(path=str(plain)))
    assert is_synthetic("s", SourceConfig(path=str(plain), synthetic=True))
    # Among the files of a folder those that people wrote need no verdict; verdicts are no data.
    table = export(made)
    fill(table, ["accept"] * 12)
    assert take(made, table) == 0
    found = unreviewed(config_of(s=SourceConfig(path=str(tmp_path / "*.jsonl"), min_acceptance=0.7)))
    assert not found and verdicts_file(made).is_file()
    # What `replay generate` wrote is rehearsed, not learnt.
    generated = write_source(tmp_path, name="generated.jsonl")
    assert refusals(generated)
    (tmp_path / "meta.json").write_text("{}")
    assert not refusals(generated) and refusals(generated, synthetic=True)


def test_a_source_that_is_elsewhere_cannot_be_looked_at(tmp_path: Path) -> None:
    (found,) = unreviewed(config_of(s=SourceConfig(dataset="org/made", synthetic=True))).values()
    assert "org/made is not here" in found.sentence


def test_prepare_refuses_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_source(tmp_path)
    words = [
        "model=tiny",
        "data=text",
        f"data.sources.corpus.path={file}",
        f"data.cache_dir={tmp_path}/cache",
    ]
    assert run_command(["prepare", *words, "train.max_steps=1"]) == 2
    assert "corpus` must be looked at by people" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()
    assert (
        run_command(["prepare", *words, "train.max_steps=1", "data.sources.corpus.min_acceptance=null"]) == 0
    )
    assert "taken without verdicts of people" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("content", "name", "words"),
    [
        ("", "v.json", "but is empty"),
        ("{", "v.json", "must be what the review page saved"),
        ('{"reviewer": "a", "num_sampled": 3, "verdicts": []}', "v.json", "but has none"),
        ('{"reviewer": "a", "num_sampled": 3, "verdicts": [{"line": 1}]}', "v.json", "is not ('verdict')"),
        ("line,digest\n1,x\n", "v.csv", "has no note"),
        ("line,digest,verdict,note\n1,x,perhaps,\n", "v.csv", "line 2 must have one of accept"),
        ("line,digest,verdict,note\none,x,yes,\n", "v.csv", "cannot be read as a table"),
        (
            "line,digest,verdict,note\n1,x,yes,\n",
            "v.csv",
            "1 verdict of 1 are about others; the first is about line 1",
        ),
        ("line,digest,verdict,note\n99,x,yes,\n", "v.csv", "the first is about line 99"),
    ],
)
def test_a_file_that_is_none_of_verdicts_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, name: str, words: str
) -> None:
    file = write_source(tmp_path)
    (tmp_path / name).write_text(content)
    assert take(file, tmp_path / name) == 2
    assert words in capsys.readouterr().err
    assert not verdicts_file(file).exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "is given nothing instead"),
        (["export"], "must be given what to do and a file"),
        (["export", "gone.jsonl"], "gone.jsonl is no file"),
        (["export", "made.txt"], "must be given a .jsonl file"),
        (["export", "made.jsonl", "num=x"], "`num` must be a whole number from 1 up"),
        (["export", "made.jsonl", "size=3"], "is given size"),
        (["import", "made.jsonl", "v.csv"], "`reviewer` must be given"),
        (["export", "empty.jsonl"], "must hold rows to be looked at, but is empty"),
        (["export", "broken.jsonl"], "line 1 must be a JSON object"),
    ],
)
def test_words_that_are_wrong_are_told(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_source(tmp_path)
    (tmp_path / "v.csv").write_text("line,digest,verdict,note\n")
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "broken.jsonl").write_text("[1]\n")
    assert run_command(["data", "review", *words]) == 2
    assert said in capsys.readouterr().err
    assert not [*tmp_path.glob("*-review")]
