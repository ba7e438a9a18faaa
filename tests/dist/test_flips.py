"""No flipped bit in a file of a run or of its cache is taken silently; `python -m tests.dist.flips` tries all files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.dist.flips import HARMLESS, LAST, RESULTS, Flip, files_of, flip, make_pristine

RECORDED = [Flip(**({"said": "", "byte": 0} | one)) for one in json.loads(RESULTS.read_text())["files"]]
KINDS = (
    *("run/checkpoints/*/manifest.json", "run/checkpoints/*/shards/*", "run/checkpoints/*/state.json"),
    *(
        "run/config.yaml",
        "run/ledger.jsonl",
        "run/provenance.json",
        "run/base_evaluation.npz",
        "cache/evaluations/*",
    ),
    *("cache/references/*/*/*", "cache/stores/*/meta.json", "cache/stores/*/train/*", "cache/prepared/*"),
    *("cache/models/*/model.safetensors", "run/export/*.safetensors"),
)


def test_the_record_is_of_every_kind_of_file_and_nothing_in_it_was_taken_silently() -> None:
    for kind in KINDS:
        assert any(Path(one.file).match(kind) for one in RECORDED), kind
    assert [one.file for one in RECORDED if not one.is_sound] == []
    assert len(RECORDED) > 60


def test_what_is_said_to_be_harmless_was_seen_to_be() -> None:
    """A file that is named or made again needs no excuse."""
    excused = [one for one in RECORDED if one.outcome == "not read"]
    assert all(one.why_harmless in HARMLESS.values() for one in excused)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    work = tmp_path_factory.mktemp("flips")
    return work, make_pristine(work)


@pytest.mark.parametrize(
    ("kind", "outcomes"),
    [
        ("run/config.yaml", {"refused"}),
        ("run/checkpoints/step-00000003/state.json", {"said"}),
        ("cache/evaluations/*.npz", {"said"}),
        ("cache/models/*/model.safetensors", {"said", "made again"}),
    ],
)
def test_a_flipped_bit_is_found(pristine: tuple[Path, dict[str, Any]], kind: str, outcomes: set[str]) -> None:
    work, expected = pristine
    (file, *_) = [one for one in files_of(work) if Path(one).match(kind)]
    found = flip(work, file, expected)
    assert found.is_sound and found.outcome in outcomes, found


def test_a_run_that_goes_on_from_what_is_whole_comes_to_the_same(
    pristine: tuple[Path, dict[str, Any]],
) -> None:
    """Were it not, every flipped bit would look as if it had been taken."""
    work, expected = pristine
    assert not (work / "pristine" / "run" / "checkpoints" / LAST).exists()
    found = flip(work, "run/report.html", expected)
    assert found.outcome == "made again", found
