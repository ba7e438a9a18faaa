"""Which place on this machine's disks a mistyped path may have meant. Reads names of folders alone."""

from __future__ import annotations

import difflib
import os
from itertools import islice
from pathlib import Path

MOST_NAMES = 5000
"""Names of a folder that are compared: an error is told at once."""
LIKE, LIKE_ABOVE = 0.6, 0.75
"""How like a name must be to the typed one: the last of a path, and those of the folders above it."""


def looks_local(name: str) -> bool:
    """Tell whether a name can only be a path; the others may be names of the hub, too."""
    return name.startswith(("/", ".", "~"))


def near_place(path: str) -> str | None:
    """Return the place that is there and most like a path that is not, written as the path was; None without one."""
    typed = os.path.expanduser(path)
    parts = Path(os.path.abspath(typed)).parts
    found = Path(parts[0])
    for number, part in enumerate(parts[1:], start=1):
        if not (found / part).exists():
            part = _near_name(found, part, LIKE if number == len(parts) - 1 else LIKE_ABOVE) or ""
        if not part:
            return None
        found /= part
    return str(found) if os.path.isabs(typed) else os.path.relpath(found)


def _near_name(folder: Path, name: str, like: float) -> str | None:
    """Return the name in a folder that is most like one; of those that only begin so the one, where there is one."""
    try:
        names = [entry.name for entry in islice(os.scandir(folder), MOST_NAMES)]
    except OSError:
        return None
    seen = {one.lower(): one for one in names if not one.startswith(".") or name.startswith(".")}
    near = difflib.get_close_matches(name.lower(), seen, n=1, cutoff=like)
    begun = [one for one in seen if len(name) > 2 and one.startswith(name.lower())]
    found = near or (begun if len(begun) == 1 else [])
    return seen[found[0]] if found else None
