"""A manifest that somebody or something changed is a sentence, whatever became of it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from trainer.checkpoint.layout import MANIFEST
from trainer.checkpoint.manifest import Lineage, Manifest, _seal, manifest_text, read_manifest
from trainer.errors import CheckpointError

FILES = {"shards/rank-00000.safetensors": (20, "a" * 64), "state.json": (3, "b" * 64)}
GOOD = Manifest(100, 2, 3, "config", "data", Lineage("one", 2, "step-00000050"), FILES, {"device": "cpu"})
ODD: tuple[Any, ...] = (
    *(None, True, -1, 2**80, 1e400, float("nan"), "", "x" * 300, "\x00", [], {}, [[]], {"": None}, [1, 2, 3]),
)
PIECES = (b"[" * 100_000, b"NaN", b"\xff\xfe", b'"', b"}", b"1e999", b"\x00", b'{"a":' * 50_000, b"9" * 5000)


def told(folder: Path, text: bytes) -> Manifest | None:
    """Return what is read; None for a sentence. Anything else that is raised fails."""
    (folder / MANIFEST).write_bytes(text)
    try:
        return read_manifest(folder)
    except CheckpointError as error:
        assert "is not a valid manifest" in str(error)
        return None


def damaged(text: bytes, dice: random.Random) -> bytes:
    at = dice.randrange(len(text))
    match dice.randrange(4):
        case 0:
            return text[:at]
        case 1:
            return text[:at] + bytes([text[at] ^ 1 << dice.randrange(8)]) + text[at + 1 :]
        case 2:
            return text[:at] + dice.choice(PIECES) + text[at:]
        case _:
            return text[:at] + text[at + dice.randrange(1, 40) :]


def resealed(record: dict[str, Any]) -> bytes:
    return json.dumps({"sha256": _seal(record), "manifest": record}).encode()


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_manifest_is_told_or_says_what_it_said(tmp_path: Path, seed: int) -> None:
    dice, whole = random.Random(seed), manifest_text(GOOD).encode()
    assert told(tmp_path, whole) == GOOD
    seen = [told(tmp_path, damaged(whole, dice)) for _ in range(250)]
    assert all(one in (None, GOOD) for one in seen) and None in seen


def test_a_manifest_that_was_sealed_anew_over_odd_values_is_told_too(tmp_path: Path) -> None:
    """Of each place in it every odd value, and each of them as all there is."""
    record = json.loads(manifest_text(GOOD))["manifest"]
    places: list[tuple[str, ...]] = [(key,) for key in record]
    places += [("lineage", key) for key in record["lineage"]] + [("files", name) for name in FILES]
    for place in places:
        for odd in ODD:
            changed = json.loads(json.dumps(record))
            inner = changed
            for key in place[:-1]:
                inner = inner[key]
            inner[place[-1]] = odd
            read = told(tmp_path, resealed(changed))
            assert read is None or all(size >= 0 for size, _ in read.files.values()), (place, odd)
    for odd in ODD:
        assert told(tmp_path, json.dumps(odd).encode()) is None
        assert told(tmp_path, json.dumps({"sha256": "", "manifest": odd}).encode()) is None


def test_a_manifest_of_a_type_that_nobody_wrote_is_not_taken(tmp_path: Path) -> None:
    record = json.loads(manifest_text(GOOD))["manifest"]
    for key, odd in (
        ("step", "100"),
        ("step", -1),
        ("world_size", 0),
        ("zero_stage", 9),
        ("facts", []),
        ("config_digest", 5),
    ):
        assert told(tmp_path, resealed(record | {key: odd})) is None, key
