"""Which steps of a run are in wandb's own files: a killed process takes with it what wandb had not written yet.

wandb writes them in blocks and has no public reader. The format is LevelDB's log, with a header of wandb's own; the
records are the protobufs that wandb ships.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator
from pathlib import Path

_LOG = logging.getLogger(__name__)
_HEADER_BYTES = 7
_BLOCK_BYTES = 32768
_CHUNK = struct.Struct("<IHB")
"""Checksum, length and kind of a chunk: 1 whole, 2 first, 3 middle, 4 last of a record."""


def newest_step(run_dir: Path, run_id: str) -> int | None:
    """Return the newest step in all files of a run, -1 where they hold none; None where they cannot be read."""
    try:
        # The second run of a second has `-1` behind the name of its folder.
        paths = (run_dir / "wandb").glob(f"*run-*-{run_id}*/run-{run_id}.wandb")
        return max((step for path in paths for step in _steps(path.read_bytes())), default=-1)
    except Exception as error:
        _LOG.debug("wandb's files cannot be read: %s", error)
        return None


def _steps(content: bytes) -> Iterator[int]:
    from wandb.proto import wandb_internal_pb2

    for raw in _records(content):
        record = wandb_internal_pb2.Record.FromString(raw)
        for item in record.history.item:
            if (item.key or "/".join(item.nested_key)) == "_step":
                yield int(item.value_json)


def _records(content: bytes) -> Iterator[bytes]:
    """Yield whole records; the end of a file may be torn."""
    at, record = _HEADER_BYTES, b""
    while at + _CHUNK.size <= len(content):
        left = _BLOCK_BYTES - at % _BLOCK_BYTES
        kind, length = 0, 0
        if left >= _CHUNK.size:
            _, length, kind = _CHUNK.unpack_from(content, at)
        if kind == 0:  # a block ends with zeros
            at += left
            continue
        start, at = at + _CHUNK.size, at + _CHUNK.size + length
        if at > len(content):
            return
        record = content[start:at] if kind in (1, 2) else record + content[start:at]
        if kind in (1, 4):
            yield record
