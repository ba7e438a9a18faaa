"""Finds the files of a source and names them: by stat for a cheap look-up, by content for a store.

Files behind an address are found by trainer.data.remote; everything else about them is the same.

No third-party import at the top: training calls this where `datasets` and `pyarrow` are not installed.
"""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from trainer.config.data import Format, SourceConfig
from trainer.config.paths import is_address
from trainer.data.remote.fetched import RemoteFile
from trainer.data.rows.reading import join_names
from trainer.data.rows.saved import SAVED_RECORDS, find_saved
from trainer.data.rows.split_names import README, Asked, choose_split, split_of
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
    ".bin": "megatron",
}
TABLES = ("parquet", "arrow")
PACKED = (*TABLES, "megatron")
"""Kinds that are not compressed as a whole."""
INDEX = ".idx"
"""End of the file beside a .bin that says where its sequences begin."""
HUB_RECORDS = ("dataset_info.json", "dataset_infos.json", *SAVED_RECORDS)
"""What Hugging Face writes beside the data."""
READ_BYTES = 1 << 20
LARGE_BYTES = 32 << 20
REMOTE_TAKEN = "jsonl, json, parquet, arrow, csv, tsv or txt files, the text kinds also as " + ", ".join(
    COMPRESSIONS
)
TAKEN = f"{REMOTE_TAKEN}, or Megatron's .bin beside its .idx"


SourceFile = Path | RemoteFile


@dataclass(slots=True)
class Listing:
    """The files of a source, in the order of its documents, and what a person should know of the choice."""

    files: Sequence[SourceFile]
    lines: list[str] = field(default_factory=list)
    order: list[Path] = field(default_factory=list)
    """Arrow files of an indices mapping, which says which rows are read, in which order; empty for all as they come."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all files."""
        return sum(f.size if isinstance(f, RemoteFile) else f.stat().st_size for f in self.files)


def file_kind(path: PurePath) -> str | None:
    """Return how a file is read, or None if no reader takes it."""
    name = path.name.lower()
    if name in HUB_RECORDS:
        return None
    for compression in COMPRESSIONS:
        if name.endswith(compression):
            kind = KINDS.get(Path(name.removesuffix(compression)).suffix)
            return None if kind in PACKED else kind
    return KINDS.get(Path(name).suffix)


def remote_kind(path: PurePath) -> str | None:
    """Return how a file behind an address is read, or None if no reader takes it."""
    kind = file_kind(path)
    return None if kind == "megatron" else kind


def list_files(name: str, source: SourceConfig, spool: Path | None = None) -> Listing:
    """Find the files of a source, sorted by path; that order is the document order.

    Args:
        spool: Folder in which tables behind an address are held while they are read; by default the system's.
    Raises:
        DataError: If there is none, or a file that was asked for is of a kind that is not read.
        Unreachable: If they are behind an address that cannot be asked from here.
    """
    assert source.path is not None
    if is_address(source.path):
        from trainer.data.remote.listed import list_remote

        return list_remote(name, source, spool)
    asked = asked_of(name, source)
    path = Path(source.path).expanduser()
    try:
        if path.is_dir():
            listing = _list_folder(path, asked)
        else:
            refuse_choice(asked)
            listing = _list_glob(path, asked)
        _check_made_elsewhere(asked, source, listing)
        return listing
    except OSError as error:
        raise DataError(
            f"`{asked.key}.path` must name files that can be read, but is '{path}' instead: {error.strerror}."
        ) from error


def asked_of(name: str, source: SourceConfig) -> Asked:
    """Return what a source asks of a folder."""
    return Asked(f"data.sources.{name}", source.split, source.subset, str(source.path))


def _check_made_elsewhere(asked: Asked, source: SourceConfig, listing: Listing) -> None:
    """Refuse ids of which nothing says what they mean."""
    made = [file for file in listing.files if isinstance(file, Path) and file_kind(file) == "megatron"]
    if made and source.format is not Format.ids:
        raise DataError(
            f"`{asked.key}.format` must be ids for Megatron files such as '{made[0].name}', which hold token ids and "
            f"no text or turns, but is {source.format.value} instead. Set {asked.key}.format=ids, or name the files "
            "that they were made of."
        )
    if made and source.tokenizer is None:
        raise DataError(
            f"`{asked.key}.tokenizer` must name the tokenizer that made the token ids of '{made[0].name}', but is null "
            f"instead. Set {asked.key}.tokenizer=NAME_OR_FOLDER; it is compared with this run's."
        )


def _list_folder(path: Path, asked: Asked) -> Listing:
    saved = find_saved(path, asked)
    if saved is not None:
        return Listing(saved.files, saved.lines, saved.order)
    walked = walk_folder(path, _is_read)
    walked.unread = [name for name in walked.unread if not _is_index(path / name)]
    if not walked.files:
        has = f"only [{join_names(walked.unread)}]" if walked.unread else "none"
        raise DataError(f"`{asked.key}.path` must hold {TAKEN}, but '{path}' has {has} instead.")
    readme = path / README
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else None
    files, lines = choose_split(path, walked.files, asked, text)
    if walked.unread:
        lines.append(f"files of the folder that are not read: {join_names(walked.unread)}")
    if walked.repeated:
        lines.append(f"links to folders that are read already: {join_names(sorted(walked.repeated))}")
    return Listing(files, lines)


def _is_read(file: Path) -> bool:
    # Many things are called .bin, weights among them.
    kind = file_kind(file)
    return kind is not None and (kind != "megatron" or file.with_suffix(INDEX).is_file())


def _is_index(file: Path) -> bool:
    """Say whether a file is the index of a .bin beside it."""
    return file.suffix == INDEX and file.with_suffix(".bin").is_file()


def refuse_choice(asked: Asked) -> None:
    """Refuse to choose a split where files are named.

    Raises:
        DataError: If a split or subset is asked for.
    """
    for key, value, default in (("split", asked.split, "train"), ("subset", asked.subset, None)):
        if value != default:
            raise DataError(
                f"`{asked.key}.{key}` must be left out where `path` names files, but is '{value}' instead: it "
                "chooses among the files of a folder or a dataset."
            )


def _list_glob(path: Path, asked: Asked) -> Listing:
    if not path.exists() and Path(f"{path}{INDEX}").is_file():
        path = Path(f"{path}.bin")  # Megatron names the two files by what comes before the dot
    found = [path] if path.is_file() else sorted(map(Path, glob.glob(_pattern(path), recursive=True)))
    found = list(
        dict.fromkeys(p.with_suffix(".bin") if p.suffix == INDEX else p for p in found if p.is_file())
    )
    for file in found:
        if file_kind(file) == "megatron" and not (file.is_file() and file.with_suffix(INDEX).is_file()):
            missing = file.with_suffix(INDEX) if file.is_file() else file
            raise DataError(
                f"`{asked.key}.path` must name Megatron's .bin beside its .idx, but '{missing}' is missing instead."
            )
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


def stat_files(listing: Listing) -> list[list[object]]:
    """Describe files without reading them: absolute path, size, times and inode, or what a store tells of them.

    Whoever keeps size and modification time while changing the bytes cannot keep the time of the change itself.
    """
    return [f.identity if isinstance(f, RemoteFile) else _stat(f) for f in (*_parts(listing), *listing.order)]


def _stat(file: Path) -> list[object]:
    stat = file.stat()
    return [str(file.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def hash_files(listing: Listing) -> list[str]:
    """Describe files by how they are read and the SHA-256 of their bytes, in order.

    Files behind an address have to be read before; one that was not read to its end is named by what its store tells.
    """
    hashed = [
        f.content if isinstance(f, RemoteFile) else f"{kind_of(f)}:{_hash_file(f)}" for f in _parts(listing)
    ]
    return hashed + [f"order:{_hash_file(file)}" for file in listing.order]


def kind_of(file: SourceFile) -> str:
    """Return how a file of a listing is read."""
    if isinstance(file, RemoteFile):
        return file.kind
    return "index" if file.suffix == INDEX else str(file_kind(file))


def is_large_json(file: SourceFile) -> bool:
    """Tell whether a file is one JSON value that takes a while to read."""
    return kind_of(file) == "json" and isinstance(file, Path) and file.stat().st_size > LARGE_BYTES


def _parts(listing: Listing) -> list[SourceFile]:
    """Return the files that hold the rows; beside a .bin its index."""
    found: list[SourceFile] = []
    for file in listing.files:
        found.append(file)
        if isinstance(file, Path) and file_kind(file) == "megatron":
            found.append(file.with_suffix(INDEX))
    return found


def _hash_file(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()
