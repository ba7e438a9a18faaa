"""Lists the files behind an address, each with what tells it from what it was; no file is read."""

from __future__ import annotations

import datetime
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from trainer.config.address import shown_address
from trainer.config.data import SourceConfig
from trainer.data.remote.address import LOOK_WAITS_S, explained, open_address, patiently
from trainer.data.remote.fetched import RemoteFile
from trainer.data.rows.files import (
    REMOTE_TAKEN,
    TABLES,
    Listing,
    asked_of,
    refuse_choice,
    remote_kind,
)
from trainer.data.rows.reading import join_names
from trainer.data.rows.saved import SAVED_RECORDS
from trainer.data.rows.split_names import README, choose_split, split_of
from trainer.errors import DataError

TAGS = ("ETag", "etag", "md5Hash", "md5", "blob_id", "xet_hash", "Content-MD5", "Digest", "generation")
"""What stores tell of a file's content, by the names that fsspec's packages give it."""
TIMES = ("LastModified", "last_modified", "Last-Modified", "updated", "mtime", "ino", "created")
"""What tells a change where no store tells of the content."""


@dataclass(slots=True)
class _Found:
    """What an address leads to, by path in its file system."""

    files: dict[str, dict[str, Any]]
    folder: str | None
    """The folder that was asked for, where it was one."""


def list_remote(name: str, source: SourceConfig, spool: Path | None = None) -> Listing:
    """Find the files behind the address of a source, sorted by path; that order is the document order.

    Args:
        spool: Folder in which tables are held while they are read; by default the system's temporary one.
    Raises:
        DataError: If there is none, or one that was asked for is of a kind that is not read.
        Unreachable: If it cannot be asked from here.
    """
    assert source.path is not None
    asked, address = asked_of(name, source), source.path
    key = f"{asked.key}.path"
    file_system, path = open_address(key, address)
    address = shown_address(address)
    with explained(key, address):
        found = patiently(address, lambda: _find(file_system, path), LOOK_WAITS_S)
    if not found.files:
        raise DataError(
            f"`{key}` must name a file, a folder or a glob that matches files, but is '{address}' instead. "
            "Check the address."
        )
    # PurePosixPath takes one of the slashes of https:// away.
    raw = {PurePosixPath(path): path for path in found.files}
    if found.folder is None:
        refuse_choice(asked)
        chosen, lines = sorted(raw), []
        told = {split_of(PurePosixPath(*file.parts[-2:])) for file in chosen} - {None}
        if len(told) > 1:
            lines.append(
                f"the path matches files of several splits, all of them read: {', '.join(sorted(map(str, told)))}"
            )
        for file in chosen:
            if remote_kind(file) is None:
                shown = shown_address(file_system.unstrip_protocol(raw[file]))
                raise DataError(f"`{key}` must name {REMOTE_TAKEN}, but matches '{shown}' instead.")
    else:
        folder, readme = PurePosixPath(found.folder), None
        chosen, lines = _read_of_folder(folder, sorted(raw), key, address)
        if folder / README in raw:
            with explained(key, address):
                text = patiently(address, lambda: file_system.cat_file(raw[folder / README]), LOOK_WAITS_S)
            readme = text.decode("utf-8", errors="replace")
        chosen, told_lines = choose_split(folder, chosen, asked, readme)
        lines = [*told_lines, *lines]
    files = []
    for file in chosen:
        identity = _identity(key, file_system.unstrip_protocol(raw[file]), found.files[raw[file]])
        kind = str(remote_kind(file))
        files.append(
            RemoteFile(
                file_system,
                raw[file],
                key,
                identity,
                kind,
                kind in TABLES,
                spool or Path(tempfile.gettempdir()),
            )
        )
    return Listing(list(files), lines)


def _find(file_system: Any, path: str) -> _Found:
    """List the files that a path, a folder or a glob names, without what is hidden."""
    import fsspec

    # A listing that an earlier look has left would hide a change.
    file_system.invalidate_cache()
    if fsspec.core.has_magic(path):
        matched = file_system.glob(path, detail=True)
        return _Found({p: info for p, info in matched.items() if info.get("type") == "file"}, None)
    info = file_system.info(path)
    if info.get("type") == "file":
        return _Found({path: info}, None)
    inside = file_system.find(path, detail=True)
    files = {
        p: info
        for p, info in inside.items()
        if info.get("type") == "file"
        and not any(part.startswith(".") for part in PurePosixPath(p).relative_to(PurePosixPath(path)).parts)
    }
    return _Found(files, path)


def _read_of_folder(
    folder: PurePosixPath, below: list[PurePosixPath], key: str, address: str
) -> tuple[list[PurePosixPath], list[str]]:
    saved = [file.name for file in below if file.name in SAVED_RECORDS]
    if saved:
        raise DataError(
            f"`{key}` must name a folder of {REMOTE_TAKEN}, but '{address}' has {saved[0]}, as `save_to_disk` writes "
            "it, instead. Download the folder and name it, or its .arrow files."
        )
    read = [file for file in below if remote_kind(file) is not None]
    unread = [str(file.relative_to(folder)) for file in below if remote_kind(file) is None]
    if not read:
        raise DataError(
            f"`{key}` must hold {REMOTE_TAKEN}, but '{address}' has only [{join_names(unread)}] instead."
        )
    return read, [f"files of the folder that are not read: {join_names(unread)}"] if unread else []


def _identity(key: str, address: str, info: dict[str, Any]) -> list[Any]:
    """Return a file's address, size, and what its store tells of its content, or else of its times."""
    address = shown_address(address)
    size = info.get("size")
    if not isinstance(size, int):
        raise DataError(
            f"`{key}` must name files whose store tells their size, but '{address}' has none instead. Download it and "
            "name the file."
        )
    told = {tag: _plain(info[tag]) for tag in TAGS if info.get(tag)}
    told = told or {time: _plain(info[time]) for time in TIMES if info.get(time)}
    if not told:
        raise DataError(
            f"`{key}` must name files whose store tells a change (an ETag or a time), but '{address}' has neither "
            "instead. Download it and name the file."
        )
    return [address, size, told]


def _plain(value: Any) -> str | int:
    if isinstance(value, datetime.datetime):
        return str(value.timestamp())
    return value if isinstance(value, int) else str(value)
