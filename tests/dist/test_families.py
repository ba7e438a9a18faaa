"""Every row of the table in docs/models.md, against plain transformers and plain peft: it is so, and stays so.

Four families of four kinds in the default suite, all of them with `-m slow`. `python -m tests.dist.test_families
[FAMILY ...]` measures all, or those named, and writes their rows to benchmarks/results/families.json; then
`python docs/matrix.py` writes the table.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from tests.dist import family as ask
from tests.helpers.families import FAMILIES
from tests.helpers.ranks import RankFailure, Ranks

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "families.json"
QUICK = ("Gemma 2", "OLMo 3", "GLM-4.5", "LFM2")
"""Capped logits, windows, a mixture, a hybrid."""
NUMBERS = ("loss", "gradient", "versions")
"""What a row holds beside words: it differs between machines."""
PACKAGES = ("torch", "deepspeed", "transformers", "peft")


def known_rows() -> dict[str, dict[str, Any]]:
    rows = json.loads(FILE.read_text(encoding="utf-8"))["results"] if FILE.exists() else []
    return {row["family"]: row for row in rows}


def measured(pool: Any, folder: Path, shared: Path, family: str) -> dict[str, Any]:
    """Ask a family everything and return its row."""
    for entry in shared.iterdir():
        (folder / entry.name).symlink_to(entry)
    place = {"folder": str(folder)}
    versions = {name: metadata.version(name) for name in PACKAGES}
    row: dict[str, Any] = {"family": family, "model_type": FAMILIES[family].model_type, "versions": versions}
    row |= asked(pool, 1, ask.make_base, "kind", **place, family=family)
    row |= asked(pool, 1, ask.check_training, "trains", **place)
    expected = row.pop("expected", None)
    if row["trains"] == ask.EQUAL:
        row |= asked(pool, 2, ask.check_sharded, "sharded", **place, expected=expected)
        row |= asked(pool, 1, ask.check_export, "exports", **place)
        row |= asked(pool, 1, ask.check_lora, "lora", **place, target="all_linear")
    if "mixture" in row["kind"] and row.get("lora") == ask.EQUAL:
        with_experts = asked(pool, 1, ask.check_lora, "lora", **place, target="all_linear,experts")
        row |= {f"{key}_with_experts": value for key, value in with_experts.items()}
    return {
        key: value.replace(f"{folder}/", "") if isinstance(value, str) else value
        for key, value in row.items()
    }


def asked(
    pool: Any, num_ranks: int, question: Callable[..., Any], key: str, **arguments: Any
) -> dict[str, Any]:
    """Return what ranks found; under the key that they failed, where they died."""
    try:
        found: dict[str, Any] = pool(num_ranks).run(question, **arguments)[0]
    except RankFailure as error:
        found = {key: f"fails: {' '.join(str(error).split())[:300]}"}
    return found


@pytest.fixture(scope="module")
def shared(pool: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("families")
    pool(1).run(ask.make_documents, folder=str(folder))
    return folder


@pytest.mark.parametrize(
    "family", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_a_family_is_what_its_row_says(pool: Any, shared: Path, tmp_path: Path, family: str) -> None:
    """The key names what is not so: `trains` is packs, or rows where documents do not share any, on one rank, and
    `sharded` two ranks with ZeRO-3, both against plain transformers on one document at a time.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if FAMILIES[family].model_type not in CONFIG_MAPPING:
        pytest.skip("this transformers does not have the family")
    found, known = measured(pool, tmp_path, shared, family), known_rows()[family]
    if found["versions"]["transformers"] == known["versions"]["transformers"]:
        assert words(found) == words(known)
    assert bad_keys(found) == bad_keys(known), found


def words(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in NUMBERS}


def bad_keys(row: dict[str, Any]) -> list[str]:
    return [key for key, value in row.items() if str(value).startswith(("differs", "fails", "has no effect"))]


def write_rows(families: list[str]) -> None:
    """Measure families and put their rows into the file, one after the other."""
    with ExitStack() as stack:
        top = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        pools = {number: Ranks(number, top / f"ranks-{number}") for number in (1, 2)}
        for ranks in pools.values():
            stack.callback(ranks.close)
        shared = top / "shared"
        shared.mkdir()
        pools[1].run(ask.make_documents, folder=str(shared))
        for index, family in enumerate(families):
            folder = top / str(index)
            folder.mkdir()
            rows = known_rows() | {family: measured(pools.__getitem__, folder, shared, family)}
            results = [rows[name] for name in FAMILIES if name in rows]
            FILE.write_text(json.dumps({"results": results}, indent=1) + "\n", encoding="utf-8")
            print(json.dumps(words(rows[family])), flush=True)


if __name__ == "__main__":
    write_rows(sys.argv[1:] or list(FAMILIES))
