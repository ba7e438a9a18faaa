"""What an export may replace: a folder that an export wrote, with nothing in it that is of somebody else. No torch."""

from __future__ import annotations

import os
import re
from pathlib import Path

from trainer.config.train import GgufType
from trainer.errors import CheckpointError
from trainer.runtime.seal import read_sealed, sealed_text

VERIFIED = ".verified.json"
"""Digests of the files of an export that was verified, and of what it was made from; never pushed."""
WRITTEN = ".written.json"
"""Names of the files of an export that is not verified yet; goes when VERIFIED comes."""
CARD = "README.md"
_ADDED = re.compile(
    rf"(model|adapter)-({'|'.join(kind.value for kind in GgufType)})\.(gguf|tmp)"
    r"|\.(README\.md|\.verified\.json|adapter_config\.json)\.[0-9a-f]{12}\.tmp"
)
"""What is added to an export later, and what a process that dies at it leaves."""


def files_in(folder: Path) -> list[str]:
    """List what is in a folder and its folders, files and links by their paths from it; not the two lists."""
    found = []
    for path, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(path, name))]
        found += [str((Path(path) / name).relative_to(folder)) for name in (*files, *links)]
    return sorted(name for name in found if name not in (VERIFIED, WRITTEN))


def note_written(folder: Path) -> None:
    """Leave the list of what an export wrote in its folder."""
    (folder / WRITTEN).write_text(sealed_text({"files": files_in(folder)}), encoding="utf-8")


def why_not_replaced(folder: Path) -> str | None:
    """Return what is in a folder that an export must not replace, in words; None where it may be written there."""
    if not os.path.lexists(folder) or (folder.is_symlink() and not folder.exists()):
        return None
    if not folder.is_dir():
        return "is no folder"
    listed = [name for one in (VERIFIED, WRITTEN) for name in _listed(folder / one)]
    if not listed:  # and nobody knows how much is below it
        names = sorted((one.name for one in folder.iterdir()), key=lambda name: (name.startswith("."), name))
        return f"holds {_first(names)}, and no list of an export ({VERIFIED})" if names else None
    others = [name for name in files_in(folder) if name not in (*listed, CARD) and not _ADDED.fullmatch(name)]
    return f"holds {_first(others)}, which no export wrote" if others else None


def refuse_foreign(folder: Path) -> bool:
    """Raise for a folder that holds anything that no export wrote; False for one that may be written.

    Raises:
        CheckpointError: Names what it holds.
    """
    why = why_foreign(folder)
    if why is not None:
        raise CheckpointError(why)
    return False


def why_foreign(folder: Path) -> str | None:
    """Return the sentence about a folder that an export must not replace; None where it may be written there."""
    why = why_not_replaced(folder)
    if why is None:
        return None
    return f"`export.output_dir` must be a new folder or an earlier export, but {folder} {why}. Choose another folder."


def _listed(file: Path) -> list[str]:
    try:
        return list(read_sealed(file)["files"])
    except (OSError, ValueError, KeyError):
        return []


def _first(names: list[str]) -> str:
    more = len(names) - 1
    return f"{names[0]} and {more} more" if more > 0 else names[0]
