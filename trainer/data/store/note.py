"""Small notes in the cache folder, replaced at once or not at all; one that cannot be read is none."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from trainer.runtime.disk import naming
from trainer.runtime.seal import read_sealed, sealed_text


def write_note(file: Path, note: dict[str, Any]) -> None:
    """Write a note in the place of the one before."""
    file.parent.mkdir(parents=True, exist_ok=True)
    staged = file.with_name(f".tmp-{uuid.uuid4().hex}")
    try:
        with naming(file):
            staged.write_text(sealed_text(note), encoding="utf-8")
        staged.replace(file)
    finally:
        staged.unlink(missing_ok=True)


def read_note(file: Path) -> dict[str, Any]:
    """Return a note; empty where there is none that is whole."""
    try:
        return read_sealed(file)
    except (OSError, ValueError):
        return {}
