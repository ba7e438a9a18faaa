"""Everything a checkpoint claims about itself, sealed by a digest of its own."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
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
        record["files"] = {name: (int(entry[0]), str(entry[1])) for name, entry in record["files"].items()}
        record["lineage"] = Lineage(**record["lineage"])
        return Manifest(**record)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a valid manifest: {error}.") from error


def _seal(record: dict[str, Any]) -> str:
    body = json.dumps(record, indent=2, sort_keys=True)
    return hashlib.sha256(body.encode()).hexdigest()
