"""Finds the local files of a source and names them: by stat for a cheap look-up, by content for a store.

No third-party import at the top: training calls this where `datasets` is not installed.
"""

from __future__ import annotations

import glob
import gzip
import hashlib
import io
from pathlib import Path
from typing import IO, Any

from trainer.config.data import SourceConfig
from trainer.errors import DataError

COMPRESSIONS = (".gz", ".zst")
KINDS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".csv": "csv",
    ".txt": "txt",
}
READ_BYTES = 1 << 20


class BrokenFile(Exception):
    """A compressed file that ends early or holds something else."""


def file_kind(path: Path) -> str | None:
    """Return how a file is read, or None if no reader takes it."""
    name = path.name.lower()
    for compression in COMPRESSIONS:
        if name.endswith(compression):
            kind = KINDS.get(Path(name.removesuffix(compression)).suffix)
            return None if kind == "parquet" else kind
    return KINDS.get(Path(name).suffix)


def list_files(name: str, source: SourceConfig) -> list[Path]:
    """Return the files of a local source, sorted by path; that order is the document order.

    Raises:
        DataError: If there is none, or a file that was asked for is of a kind that is not read.
    """
    assert source.path is not None
    key = f"`data.sources.{name}.path`"
    kinds = "jsonl, json, parquet, csv or txt files, the text kinds also as .gz or .zst"
    path = Path(source.path).expanduser()
    if path.is_dir():
        inside = (p for p in path.rglob("*") if p.is_file() and file_kind(p))
        found = sorted(p for p in inside if not _is_hidden(p.relative_to(path)))
        if not found:
            raise DataError(f"{key} must hold {kinds}, but '{path}' has none instead.")
        return found
    found = [path] if path.is_file() else sorted(map(Path, glob.glob(str(path), recursive=True)))
    found = [p for p in found if p.is_file()]
    if not found:
        raise DataError(
            f"{key} must name a file, a folder or a glob that matches files, but is "
            f"'{source.path}' instead. Check the path; it is taken from {Path.cwd()}."
        )
    for file in found:
        if file_kind(file) is None:
            raise DataError(f"{key} must name {kinds}, but matches '{file}' instead.")
    return found


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def stat_files(files: list[Path]) -> list[list[str | int]]:
    """Describe files without reading them: absolute path, size, times and inode.

    Whoever keeps size and modification time while changing the bytes cannot keep the time of the change itself.
    """
    stats = [(file, file.stat()) for file in files]
    return [[str(f.resolve()), s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino] for f, s in stats]


def hash_files(files: list[Path]) -> list[str]:
    """Describe files by how they are read and the SHA-256 of their bytes, in order."""
    return [f"{file_kind(file)}:{_hash_file(file)}" for file in files]


def _hash_file(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def open_text(file: Path) -> IO[str]:
    """Open a plain, .gz or .zst file for reading as UTF-8; a byte order mark is dropped.

    Raises:
        BrokenFile: While reading, if a compressed file is damaged or cut short.
    """
    raw: Any
    match file.suffix.lower():
        case ".gz":
            raw = gzip.open(file, "rb")  # noqa: SIM115 - the text wrapper closes it
        case ".zst":
            raw = io.BufferedReader(_ZstdFile(file), READ_BYTES)
        case _:
            raw = file.open("rb")
    return io.TextIOWrapper(raw, encoding="utf-8-sig", newline=None)


class _ZstdFile(io.RawIOBase):
    """The bytes in a .zst file. The library's own reader takes a file cut short for a whole one."""

    def __init__(self, file: Path) -> None:
        import zstandard

        self._error = zstandard.ZstdError
        self._make = zstandard.ZstdDecompressor().decompressobj
        self._stream = file.open("rb")
        self._frame: Any = None
        self._packed = b""
        self._unpacked = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._unpacked:
            self._packed = self._packed or self._stream.read(READ_BYTES)
            if not self._packed:
                if self._frame is not None:
                    raise BrokenFile("it ends in the middle of a zstd frame")
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
