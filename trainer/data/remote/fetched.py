"""A file behind an address that readers take like a path: fetched once, in blocks, and hashed while it comes."""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal

from trainer.data.remote.address import WAITS_S, explained, patiently, tell
from trainer.errors import DataError

BLOCK_BYTES = 8 << 20
LINE_EVERY_S = 10.0
GIB = 1 << 30


class RemoteFile:
    """A file behind an address.

    Args:
        key: Of the configuration, for messages.
        identity: What tells it from what it was, as a listing gives it.
        kind: How it is read.
        is_table: It is read by seeking, so it is held on disk while it is read.
        spool: Folder in which it is held, under no name.
    """

    def __init__(
        self,
        file_system: Any,
        path: str,
        key: str,
        identity: list[Any],
        kind: str,
        is_table: bool,
        spool: Path,
    ) -> None:
        self.identity = identity
        self.sha256: str | None = None
        """Of its bytes, once all were read."""
        self.num_fetched = 0
        """Bytes that came; more than its size if some were read twice."""
        self.size = int(identity[1])
        self._file_system, self._path, self._key = file_system, path, key
        self.kind = kind
        self._is_table, self._spool = is_table, spool
        self._first = b""

    def __str__(self) -> str:
        return str(self.identity[0])

    @property
    def name(self) -> str:
        """Its name without folders."""
        return PurePosixPath(self._path).name

    @property
    def suffix(self) -> str:
        """The end of its name, from the last dot."""
        return PurePosixPath(self._path).suffix

    @property
    def content(self) -> str:
        """Its content as a store's origin names it: like that of a local file, where all of it was read."""
        return f"{self.kind}:{self.sha256 or json.dumps(self.identity)}"

    def open(self, mode: Literal["rb"], /) -> IO[bytes]:
        """Open it for reading from its beginning.

        Raises:
            DataError: Also while it is read, if a block cannot be had.
        """
        return self._held() if self._is_table else io.BufferedReader(_Stream(self), BLOCK_BYTES)

    def blocks(self) -> Iterator[bytes]:
        """Fetch its bytes in order, one block ahead; its hash is known when the last was taken."""
        digest = hashlib.sha256()
        ahead: Future[bytes] | None = None
        with ThreadPoolExecutor(1) as pool:
            for start in range(0, self.size, BLOCK_BYTES):
                block = self._block(start) if ahead is None else ahead.result()
                # Whoever only looks for the columns takes the first block and no other.
                ahead = pool.submit(self._block, start + BLOCK_BYTES) if start else None
                digest.update(block)
                yield block
        self.sha256 = digest.hexdigest()
        self._first = b""

    def _block(self, start: int) -> bytes:
        if start >= self.size:
            return b""
        if start == 0 and self._first:
            return self._first
        end = min(start + BLOCK_BYTES, self.size)

        def fetch() -> bytes:
            block: bytes = self._file_system.cat_file(self._path, start=start, end=end)
            self.num_fetched += len(block)
            if len(block) > end - start:
                raise DataError(
                    f"`{self._key}` must name files whose store gives a part when asked for one, but '{self}' came "
                    "whole instead. Download it and name the file."
                )
            if len(block) < end - start:
                raise ConnectionError(f"{len(block):,} bytes came of {end - start:,} from {start:,} on")
            return block

        with explained(self._key, str(self)):
            block = patiently(str(self), fetch, WAITS_S)
        if start == 0:
            # Its first row is read to know its columns, and then all.
            self._first = block
        return block

    def _held(self) -> IO[bytes]:
        """Fetch all of it into a file without a name, which goes when it is closed."""
        self._spool.mkdir(parents=True, exist_ok=True)
        held = tempfile.TemporaryFile(dir=self._spool)  # noqa: SIM115 - its reader closes it
        said_s, num_held = time.monotonic(), 0
        for block in self.blocks():
            held.write(block)
            num_held += len(block)
            if time.monotonic() - said_s >= LINE_EVERY_S:
                said_s = time.monotonic()
                tell(f"{self}: {num_held / GIB:.2f} of {self.size / GIB:.2f} GiB fetched")
        held.seek(0)
        return held


class _Stream(io.RawIOBase):
    """The bytes of a file as they come."""

    def __init__(self, file: RemoteFile) -> None:
        self._blocks = file.blocks()
        self._block = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._block:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._block = memoryview(block)
        count = min(len(buffer), len(self._block))
        buffer[:count] = self._block[:count]
        self._block = self._block[count:]
        return count

    def close(self) -> None:
        self._blocks.close()  # type: ignore[attr-defined]
        super().close()
