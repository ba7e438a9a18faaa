"""Where the exports of a run were written: a note each in the run directory, as they may be anywhere."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from trainer.config.snapshot import write_atomic
from trainer.export.earlier import VERIFIED, WRITTEN
from trainer.export.push import file_digest
from trainer.runtime.say import say
from trainer.runtime.seal import read_sealed, sealed_text

NOTES = "exported"
"""Folder in a run directory, a file for each folder that was exported to: two exports at once do not meet."""


@dataclass(frozen=True, slots=True)
class ExportNote:
    """A folder that an export of a run was written to."""

    folder: Path
    listed: str
    """Digest of the list of what was verified in it."""

    @property
    def is_of_another(self) -> bool:
        """Tell whether the folder has a list that is whole, and not the one that this run wrote."""
        file = self.folder / VERIFIED
        try:
            read_sealed(file)
        except (OSError, ValueError):
            return False
        return file_digest(file) != self.listed


def note_export(run_dir: Path, folder: Path, console: Console) -> None:
    """Leave a note of a finished export in the run directory; where nothing can be written there, say so.

    A folder within the run directory is noted from there, so that both can be moved.
    """
    run_dir, folder = run_dir.absolute(), folder.absolute()
    named = str(folder.relative_to(run_dir) if folder.is_relative_to(run_dir) else folder)
    file = run_dir / NOTES / f"{hashlib.sha256(named.encode()).hexdigest()[:16]}.json"
    try:
        file.parent.mkdir(exist_ok=True)
        write_atomic(file, sealed_text({"folder": named, "listed": file_digest(folder / VERIFIED)}))
    except OSError as error:
        why = f"{file} cannot be written ({error.strerror})"
        say(console, f"{why}: `palimpsest verify` of the run may not know of {folder}.")


def what_stands(folder: Path, origin: str) -> str:
    """Return in a sentence what an export that was interrupted left in its place: folders appear whole, or not at all.

    Args:
        origin: What the export that was asked for is made from.
    """
    try:
        is_this = read_sealed(folder / VERIFIED)["origin"] == origin
    except (OSError, ValueError, KeyError):
        if (folder / WRITTEN).exists():
            return f"{folder} is written whole, and was not verified: export again."
        return f"Nothing was written to {folder}."
    if is_this:
        return f"{folder} is whole, and was verified."
    return f"{folder} holds an earlier export, as it was."


def export_notes(run_dir: Path) -> Iterator[ExportNote | str]:
    """Yield the notes of a run's exports, by folder; for one that is not as it was written, why in words."""
    found: list[ExportNote] = []
    for file in sorted((run_dir / NOTES).glob("*.json")):
        try:
            note = read_sealed(file)
        except (OSError, ValueError) as error:
            yield f"{NOTES}/{file.name} cannot be read ({error})"
            continue
        found.append(ExportNote(run_dir.absolute() / note["folder"], note["listed"]))
    yield from sorted(found, key=lambda one: one.folder)
