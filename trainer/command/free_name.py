"""A name that a file of a folder may have and none has yet, as like a wish as can be."""

from __future__ import annotations

import itertools
import re
import unicodedata
from pathlib import Path


def free_name(wish: str, folder: Path) -> str:
    """Return a name of ASCII letters, digits, _, - and . for a YAML file of a folder, which is not there yet."""
    plain = unicodedata.normalize("NFKD", wish.replace("ß", "ss")).encode("ascii", "ignore").decode()
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", plain).strip("-._") or "run"
    names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    return next(name for name in names if not (folder / f"{name}.yaml").exists())
