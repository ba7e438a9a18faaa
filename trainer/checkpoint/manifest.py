"""Everything a checkpoint claims about itself, sealed by a digest of its own."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from trainer.checkpoint.layout import MANIFEST
from trainer.errors import CheckpointError

FORMAT = 2


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where a checkpoint comes from: checkpoints of one run are of one line, whatever else lies beside them."""

    run: str
    """New with every start at step 0."""
    attempt: int
    """Start of this run that wrote it, from 1."""
    parent: str | None
    """Checkpoint that this attempt went on from; None: it began at step 0."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything a checkpoint claims about itself."""

    step: int
    world_size: int
    zero_stage: int
    config_digest: str
    data_digest: str
    lineage: Lineage
    files: dict[str, tuple[int, str]]
    facts: dict[str, Any]


def manifest_text(manifest: Manifest) -> str:
    """Return what the manifest's file holds, with its seal."""
    record = {"format": FORMAT, **dataclasses.asdict(manifest)}
    record["files"] = {name: list(entry) for name, entry in manifest.files.items()}
    return json.dumps({"sha256": _seal(record), "manifest": record}, indent=2)


def read_manifest(folder: Path) -> Manifest:
    """Read a manifest and check its own seal.

    Raises:
        CheckpointError: Missing, torn, altered or of another format.
        OSError: The disk fails, which may pass.
    """
    path = folder / MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not a valid manifest: {error}.") from error
    try:
        outer = json.loads(text)
        record = outer["manifest"]
        if _seal(record) != outer["sha256"]:
            raise ValueError("its digest does not match")
        if record.pop("format") != FORMAT:
            raise ValueError("another version of palimpsest wrote it")
        return _read(record)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a valid manifest: {error}.") from error


def _read(record: dict[str, Any]) -> Manifest:
    """Return what a record says.

    Raises:
        ValueError: A value is none that a manifest holds, whoever sealed it.
        KeyError, TypeError: One is missing, or too many.
    """
    files = _of(dict, record.pop("files"), "files")
    for name, entry in files.items():
        inside = PurePosixPath(name)
        if inside.is_absolute() or ".." in inside.parts or "\0" in name or not inside.parts:
            raise ValueError(f"{name!r} is no file of a checkpoint")
        size, digest = _of(list, entry, name)
        files[name] = _whole(size, name), _of(str, digest, name)
    lineage = Lineage(**_of(dict, record.pop("lineage"), "lineage"))
    _of(str, lineage.run, "run")
    _whole(lineage.attempt, "attempt", 1)
    _of(str | None, lineage.parent, "parent")
    manifest = Manifest(lineage=lineage, files=files, **record)
    _whole(manifest.step, "step")
    _whole(manifest.world_size, "world_size", 1)
    if _whole(manifest.zero_stage, "zero_stage") > 3:
        raise ValueError("zero_stage is not one of 0 to 3")
    for name in ("config_digest", "data_digest"):
        _of(str, getattr(manifest, name), name)
    _of(dict, manifest.facts, "facts")
    return manifest


def _of(kind: Any, value: Any, name: str) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"{name} has a value of another kind")
    return value


def _whole(value: Any, name: str, least: int = 0) -> int:
    if type(value) is not int or not least <= value < 2**63:
        raise ValueError(f"{name} is no whole number of at least {least}")
    return value


def _seal(record: dict[str, Any]) -> str:
    body = json.dumps(record, indent=2, sort_keys=True)
    return hashlib.sha256(body.encode()).hexdigest()
