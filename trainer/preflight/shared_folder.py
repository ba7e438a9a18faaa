"""Write to the run directory and read what other nodes wrote there."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path

_REPEATS = 2048
"""Of a nonce of 32 characters: 64 KiB, which a full disk does not take."""
POLL_S = 0.1


def nearest(folder: Path) -> Path:
    """Return the folder, or the nearest above it that is there; a file in its way is returned, and takes no probe."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def probe_path(folder: Path, nonce: str, node: str) -> Path:
    """Return the file that a node writes; the nonce keeps checks and caches apart."""
    return folder / f".preflight-{nonce}-{node}"


def write_probe(folder: Path, nonce: str, node: str) -> str | None:
    """Write, sync and rename a file as a checkpoint does; return why it cannot be done."""
    path = probe_path(folder, nonce, node)
    staged = path.with_suffix(".tmp")
    try:
        with staged.open("w", encoding="utf-8") as file:
            file.write(nonce * _REPEATS)
            file.flush()
            os.fsync(file.fileno())
        staged.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            staged.unlink(missing_ok=True)
        return error.strerror or str(error)
    return None


def wait_for_probe(folder: Path, nonce: str, node: str, wait_s: float) -> float | None:
    """Return after how many seconds another node's file is there, whole; None when it does not come."""
    path = probe_path(folder, nonce, node)
    start = time.monotonic()
    while True:
        try:
            # A listing makes an NFS client ask again for names that it did not find.
            os.listdir(folder)
            if path.read_text(encoding="utf-8") == nonce * _REPEATS:
                return time.monotonic() - start
        except OSError:
            pass
        if time.monotonic() - start > wait_s:
            return None
        time.sleep(POLL_S)


def remove_probe(folder: Path, nonce: str, node: str) -> None:
    """Remove what this node wrote."""
    with contextlib.suppress(OSError):
        probe_path(folder, nonce, node).unlink(missing_ok=True)


def free_bytes(folder: Path) -> int | None:
    """Return what the disk of a folder has left."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None
