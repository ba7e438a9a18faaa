"""Finds the local files of a source and names them: by stat for a cheap look-up, by content for a store.

No third-party import at the top: training calls this where `datasets` and `pyarrow` are not installed.
"""

from __future__ import annotations

import glob
import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

from trainer.config.data import SourceConfig
from trainer.data.rows.reading import join_names
from trainer.data.rows.split_names import Asked, choose_split, split_of
from trainer.data.rows.walk import walk_folder
from trainer.errors import DataError

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
KINDS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".jsonlines": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "txt",
}
TABLES = ("parquet", "arrow")
HUB_RECORDS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""What Hugging Face writes beside the data."""
READ_BYTES = 1 << 20
TAKEN = "jsonl, json, parquet, arrow, csv, tsv or txt files, the text kinds also as " + ", ".join(
    COMPRESSIONS
)


@dataclass(slots=True)
class Listing:
    """The files of a source, in the order of its documents, and what a person should know of the choice."""

    files: list[Path]
    lines: list[str] = field(default_factory=list)


def file_kind(path: Path) -> str | None:
    """Return how a file is read, or None if no reader takes it."""
    name = path.name.lower()
    if name in HUB_RECORDS:
        return None
    for compression in COMPRESSIONS:
        if name.endswith(compression):
            kind = KINDS.get(Path(name.removesuffix(compression)).suffix)
            return None if kind in TABLES else kind
    return KINDS.get(Path(name).suffix)


def list_files(name: str, source: SourceConfig) -> Listing:
    """Find the files of a local source, sorted by path; that order is the document order.

    Raises:
        DataError: If there is none, or a file that was asked for is of a kind that is not read.
    """
    assert source.path is not None
    asked = Asked(f"data.sources.{name}", source.split, source.subset)
    path = Path(source.path).expanduser()
    try:
        if path.is_dir():
            return _list_folder(path, asked)
        _refuse_choice(asked)
        return _list_glob(path, asked)
    except OSError as error:
        raise DataError(
            f"`{asked.key}.path` must name files that can be read, but is '{path}' instead: {error.strerror}."
        ) from error


def _list_folder(path: Path, asked: Asked) -> Listing:
    walked = walk_folder(path, lambda file: file_kind(file) is not None)
    if not walked.files:
        has = f"only [{join_names(walked.unread)}]" if walked.unread else "none"
        raise DataError(f"`{asked.key}.path` must hold {TAKEN}, but '{path}' has {has} instead.")
    files, lines = choose_split(path, walked.files, asked)
    if walked.unread:
        lines.append(f"files of the folder that are not read: {join_names(walked.unread)}")
    if walked.repeated:
        lines.append(f"links to folders that are read already: {join_names(sorted(walked.repeated))}")
    return Listing(files, lines)


def _refuse_choice(asked: Asked) -> None:
    for key, value, default in (("split", asked.split, "train"), ("subset", asked.subset, None)):
        if value != default:
            raise DataError(
                f"`{asked.key}.{key}` must be left out where `path` names files, but is '{value}' instead: it "
                "chooses among the files of a folder or a dataset."
            )


def _list_glob(path: Path, asked: Asked) -> Listing:
    found = [path] if path.is_file() else sorted(map(Path, glob.glob(_pattern(path), recursive=True)))
    found = [p for p in found if p.is_file()]
    if not found:
        raise DataError(
            f"`{asked.key}.path` must name a file, a folder or a glob that matches files, but is "
            f"'{path}' instead. Check the path; it is taken from {Path.cwd()}."
        )
    for file in found:
        if file_kind(file) is None:
            raise DataError(f"`{asked.key}.path` must name {TAKEN}, but matches '{file}' instead.")
    # A link to a folder above gives every file again and again; the shortest way to it counts.
    once: dict[str, Path] = {}
    for file in sorted(found, key=lambda path: (len(path.parts), path)):
        once.setdefault(os.path.realpath(file), file)
    left = len(found) - len(once)
    lines = (
        [f"{left:,} of the paths that match are the same file as another, and are read once"] if left else []
    )
    told = {split_of(Path(*file.parts[-2:])) for file in once.values()} - {None}
    if len(told) > 1:
        lines.append(
            f"the path matches files of several splits, all of them read: {', '.join(sorted(map(str, told)))}"
        )
    return Listing(sorted(once.values()), lines)


def _pattern(path: Path) -> str:
    """Return a path as a glob in which a name that is there, such as a folder v[1], stands for itself."""
    done = Path(path.anchor)
    pattern = glob.escape(str(done)) if path.anchor else ""
    for part in path.relative_to(path.anchor).parts:
        is_there = done is not None and (done / part).exists()
        pattern = os.path.join(pattern, glob.escape(part) if is_there else part)
        done = done / part if is_there else Path(os.devnull)
    return pattern


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
