"""Opens a file as text, unpacked if it is packed. A file that is cut short or goes on as something else is told.

A file is a path here or an object behind an address; readers see no difference.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from typing import IO, Any, Literal, Protocol

from trainer.data.formats.magic import COMPRESSED, HEAD_BYTES, kind_of_head
from trainer.errors import DataError

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
        DataError: By its first bytes it is something else than text, or than its name says.
        BrokenFile: While reading, if a compressed file is damaged or cut short.
    """
    return io.TextIOWrapper(_open_bytes(file), encoding="utf-8-sig", newline=newline)


def undecodable_line(file: DataFile) -> int | None:
    """Return the first line of a text file that is not UTF-8, from 1; None where it is no text, or all of it is."""
    try:
        with _open_bytes(file) as raw:
            for number, line in enumerate(raw, 1):
                try:
                    line.decode("utf-8")
                except UnicodeDecodeError:
                    return number
    except (OSError, EOFError, zlib.error, BrokenFile, DataError):
        return None
    return None


def _open_bytes(file: DataFile) -> Any:
    """Open a file for reading what is in it, unpacked."""
    packed: Any = file.open("rb")
    raw: Any
    suffix = file.suffix.lower()
    _check_packed(file, suffix, packed)
    match suffix:
        case ".gz":
            raw = gzip.open(packed, "rb")  # noqa: SIM115 - the text wrapper closes it
        case ".zst":
            import zstandard

            make = zstandard.ZstdDecompressor().decompressobj
            raw = _buffered(packed, make, zstandard.ZstdError)
        case ".bz2":
            raw = _buffered(packed, bz2.BZ2Decompressor, OSError)
        case ".xz":
            raw = _buffered(packed, lzma.LZMADecompressor, lzma.LZMAError, padding=b"\0")
        case _:
            raw = packed
    _check_text(file, suffix, raw)
    return raw


def _check_packed(file: DataFile, suffix: str, packed: Any) -> None:
    """Raise where the name says that a file is compressed and its first bytes do not."""
    start = COMPRESSED.get(suffix)
    head = packed.peek(HEAD_BYTES)[:HEAD_BYTES] if start is not None else b""
    if not head or start is None or head.startswith(start[: len(head)]):
        return
    kind = kind_of_head(head, file)
    what = "something else" if kind is None else kind.what
    raise DataError(
        f"{file} must be compressed as its name says ({suffix}), but is {what} instead. Take {suffix} off its name "
        "where it holds rows as they are, or make the file anew."
    )


def _check_text(file: DataFile, suffix: str, raw: Any) -> None:
    """Raise where what is read is known for something else than text by its first bytes."""
    kind = kind_of_head(raw.peek(HEAD_BYTES)[:HEAD_BYTES], None if suffix in COMPRESSED else file)
    if kind is not None:
        inside = "hold text inside" if suffix in COMPRESSED else "be text"
        raise DataError(
            f"{file} must {inside}, but is {kind.what} instead, whatever its name says. {kind.fix}"
        )


def _buffered(
    packed: Any, make: Callable[[], Any], error: type[Exception], padding: bytes = b""
) -> io.BufferedReader:
    return io.BufferedReader(_Frames(packed, make, error, padding), READ_BYTES)


class _Frames(io.RawIOBase):
    """The bytes in a compressed file of one or more frames.

    The libraries' own readers take a file cut short, or followed by something else, for a whole one.
    """

    def __init__(self, packed: Any, make: Callable[[], Any], error: type[Exception], padding: bytes) -> None:
        self._make = make
        self._error = error
        self._padding = padding
        self._stream = packed
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
