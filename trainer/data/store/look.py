"""What a source is made of as it stands, without reading it.

Nodes of a cluster often cannot ask an address that the login node could: there, what was seen when the source was
prepared stands in, and that is said.
"""

from __future__ import annotations

import functools
import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config.address import shown_address
from trainer.config.data import DataConfig, SourceConfig
from trainer.config.paths import is_address
from trainer.data.remote.address import Unreachable, tell
from trainer.data.rows.files import Listing, list_files, stat_files
from trainer.data.store.note import read_note, write_note


@dataclass(frozen=True, slots=True)
class Look:
    """What tells a source from what it was, and what a person should know of the choice of its files."""

    origin: Any
    lines: list[str]


def look_at(name: str, source: SourceConfig, data: DataConfig) -> Look:
    """Look at the files of a source, or at its name on the hub.

    Raises:
        DataError: If there are no such files, or they cannot be asked for and were not prepared from here.
    """
    if source.path is None:
        return Look([source.dataset, source.subset, source.split, source.revision], [])
    try:
        listing = list_files(name, source)
    except Unreachable as error:
        seen = read_note(_file(source, data))
        if "origin" not in seen:
            raise
        _say_once(f"{name}: {error} It is taken for what it was on {seen['day']}, when it was prepared.")
        return Look(seen["origin"], list(seen["lines"]))
    return Look(stat_files(listing), listing.lines)


def keep_look(source: SourceConfig, listing: Listing, data: DataConfig) -> None:
    """Note what a source behind an address was when it was prepared."""
    if source.path is not None and is_address(source.path):
        day = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
        note = {
            "address": shown_address(source.path),
            "day": day,
            "origin": stat_files(listing),
            "lines": listing.lines,
        }
        write_note(_file(source, data), note)


def _file(source: SourceConfig, data: DataConfig) -> Path:
    named = json.dumps([shown_address(source.path or ""), source.split, source.subset])
    return Path(data.cache_dir) / "addresses" / f"{hashlib.sha256(named.encode()).hexdigest()}.json"


@functools.cache
def _say_once(line: str) -> None:
    tell(line)
