"""Folders of a cache that strangers can write to: what is in them has digests of itself, which they can write too."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

from trainer.errors import DataError


def check_cache(folder: Path, say: Callable[[str], None], user: int | None = None) -> None:
    """Find out who can write to a cache folder and the folders in it.

    Digests tell damage, not intent. Its owner and group are trusted, as whoever shares a cache with them wants it.

    Args:
        say: Told of a cache that belongs to somebody else.
        user: Whose process this is; None asks.
    Raises:
        DataError: Everybody can write to one.
    """
    if not folder.is_dir():
        return
    for one in (folder, *(path for path in folder.iterdir() if path.is_dir())):
        mode = one.stat().st_mode
        if mode & stat.S_IWOTH:
            raise DataError(
                f"`data.cache_dir` must be a folder that its owner and group alone can write to, but everybody can "
                f"write to {one} (mode {stat.S_IMODE(mode):o}) instead, and what is read there is trained on. Run: "
                f"chmod o-w {one}, or give another."
            )
    owner = folder.stat().st_uid
    if owner not in (os.geteuid() if user is None else user, 0):
        say(f"data.cache_dir {folder} belongs to user {owner}: what is in it is taken as theirs.")
