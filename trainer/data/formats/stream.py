"""Opens a file as text, unpacked if it is packed. A file that is cut short or goes on as something else is told.

A file is a path here or an object behind an address; readers see no difference.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from collections.abc import Callable
from typing import IO, Any, Literal, Protocol

READ_BYTES = 1 << 20


class DataFile(Protocol):
    """A file of rows: a `pathlib.Path`, or a file behind an address (`trainer.data.remote.fetched.RemoteFile`)."""

    @property
    def name(self) -> str:
        """Its name without folders."""

    @property
    def suffix(self) -> str:
        """The end of its name, from the last dot."""

    def open(self, mode: Literal["rb"], /) -> IO[bytes]:
        """Open it for reading from its beginning; a table can be sought in. Each call reads for itself."""


class BrokenFile(Exception):
    """A compressed file that ends early or holds something else."""


def open_text(file: DataFile, newline: str | None = None) -> IO[str]:
    """Open a plain, .gz, .bz2, .xz or .zst file for reading as UTF-8; a byte order mark is dropped.

    Raises:
        BrokenFile: While reading, if a compressed file is damaged or cut short.
    """
    raw: Any
    match file.suffix.lower():
        case ".gz":
            raw = gzip.open(file.open("rb"), "rb")  # noqa: SIM115 - the text wrapper closes it
        case ".zst":
            import zstandard

            make = zstandard.ZstdDecompressor().decompressobj
            raw = _buffered(file, make, zstandard.ZstdError)
        case ".bz2":
            raw = _buffered(file, bz2.BZ2Decompressor, OSError)
        case ".xz":
            raw = _buffered(file, lzma.LZMADecompressor, lzma.LZMAError, padding=b"\0")
        case _:
            raw = file.open("rb")
    return io.TextIOWrapper(raw, encoding="utf-8-sig", newline=newline)


def _buffered(
    file: DataFile, make: Callable[[], Any], error: type[Exception], padding: bytes = b""
) -> io.BufferedReader:
    return io.BufferedReader(_Frames(file, make, error, padding), READ_BYTES)


class _Frames(io.RawIOBase):
    """The bytes in a compressed file of one or more frames.

    The libraries' own readers take a file cut short, or followed by something else, for a whole one.
    """

    def __init__(
        self, file: DataFile, make: Callable[[], Any], error: type[Exception], padding: bytes
    ) -> None:
        self._make = make
        self._error = error
        self._padding = padding
        self._stream = file.open("rb")
        self._frame: Any = None
        self._packed = b""
        self._unpacked = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._unpacked:
            self._packed = self._packed or self._stream.read(READ_BYTES)
            if self._frame is None and self._padding:
                self._packed = self._packed.lstrip(self._padding) or self._stream.read(READ_BYTES)
            if not self._packed:
                if self._frame is not None:
                    raise BrokenFile("it ends in the middle of a compressed frame")
                return 0
            self._unpack()
        count = min(len(buffer), len(self._unpacked))
        buffer[:count] = self._unpacked[:count]
        self._unpacked = self._unpacked[count:]
        return count

    def _unpack(self) -> None:
        self._frame = self._frame or self._make()
        try:
            self._unpacked = self._frame.decompress(self._packed)
        except self._error as error:
            raise BrokenFile(str(error)) from error
        self._packed = b""
        if self._frame.eof:
            self._packed, self._frame = self._frame.unused_data, None

    def close(self) -> None:
        self._stream.close()
        super().close()
