"""Finds the local files of a source and names them: by stat for a cheap look-up, by content for a store.

Standard library only: training calls this where `datasets` is not installed.
"""

from __future__ import annotations

import glob
import hashlib
from pathlib import Path

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
    """Describe files without reading them: absolute path, size and modification time."""
    stats = [(file, file.stat()) for file in files]
    return [[str(f.resolve()), s.st_size, s.st_mtime_ns] for f, s in stats]


def hash_files(files: list[Path]) -> list[str]:
    """Describe files by how they are read and the SHA-256 of their bytes, in order."""
    return [f"{file_kind(file)}:{_hash_file(file)}" for file in files]


def _hash_file(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()
