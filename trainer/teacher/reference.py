"""What a frozen model says of packs, on disk: its most likely next tokens at every supervised position.

A folder `data.cache_dir/references/KEY` holds blocks of packs, each a folder that appears whole, so that asking goes on
where it was ended. A block holds one part for each rank that made it, written front to back, and a meta.json that comes
last. Readers map the parts; the number of ranks that read does not matter. The index of a part holds a digest of the
rows of each pack, which readers compare.

Shapes: Q supervised positions of a pack, K tokens of a position, P packs of a part.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from trainer.data.pack.collate import IGNORE, MicroBatch
from trainer.data.pack.refs import PackRef
from trainer.data.store.store import META
from trainer.data.types import Int64s
from trainer.errors import DataError
from trainer.runtime.publish import put_in_place
from trainer.runtime.seal import file_digest, part_digest, read_sealed, sealed_text

VERSION = 3
IDS = np.dtype("<i4")
LOG_PROBS = np.dtype("<f2")
"""On 1,174 positions of prose, code and numbers, SmolLM2-135M is 3e-7 nats from itself when rounded so (at most
5e-5), its gradient 3e-4 (at most 9e-4; bf16 rounds a gradient by 4e-3); float32 would take a third more."""
BYTES_PER_TOKEN = IDS.itemsize + LOG_PROBS.itemsize
"""Of one kept token at one position, in float16."""
KINDS: dict[str, np.dtype[Any]] = {"fp16": LOG_PROBS, "fp32": np.dtype("<f4")}


@dataclass(slots=True)
class BaseRows:
    """What the frozen model says of its packs in a micro-batch: its K most likely tokens at R positions.

    Shapes: rows_R int64, ascending in [0, B*T); ids_RK int32; log_probs_RK and log_rest_R float16 or float32, in nats.
    """

    rows_R: npt.NDArray[np.int64]
    ids_RK: npt.NDArray[np.int32]
    log_probs_RK: npt.NDArray[Any]
    log_rest_R: npt.NDArray[Any] | None = None
    """Logarithm of the mass of all other tokens, where it was kept."""


def references_folder(cache_dir: Path) -> Path:
    """Return the folder that holds references by key."""
    return cache_dir / "references"


class ReferenceWriter:
    """Writes one rank's part; other ranks write theirs beside it."""

    def __init__(self, folder: Path, rank: int, dtype: np.dtype[Any] = LOG_PROBS) -> None:
        """Open the part's files in a staging folder that every rank sees."""
        self._dtype = dtype
        self._ids, self._log_probs, self._index = (folder / name for name in _part_files(rank))
        self._streams = [self._ids.open("wb"), self._log_probs.open("wb")]
        self._rows: list[tuple[int, ...]] = []
        self._num_rows = 0

    def add(
        self, source: int, pack: int, ids_QK: npt.NDArray[np.int32], log_probs_QK: npt.NDArray[np.float32]
    ) -> None:
        """Append a pack; `source` counts the sources of the reference.

        Args:
            log_probs_QK: Or [Q, K+1], with the logarithm of the rest's mass behind them.
        """
        ids, log_probs = (
            np.ascontiguousarray(ids_QK, dtype=IDS),
            np.ascontiguousarray(log_probs_QK, dtype=self._dtype),
        )
        self._streams[0].write(ids.data)
        self._streams[1].write(log_probs.data)
        self._rows.append((source, pack, self._num_rows, len(ids_QK), *_row_digest(ids, log_probs)))
        self._num_rows += len(ids_QK)

    def close(self) -> None:
        """Write the index and put everything on disk."""
        with self._index.open("wb") as stream:
            np.save(stream, np.array(self._rows, dtype=np.int64).reshape(-1, 6))
            _sync(stream)
        for part in self._streams:
            _sync(part)
            part.close()


def publish(
    staging: Path, target: Path, described: Mapping[str, Any], num_parts: int, precision: str = "fp16"
) -> None:
    """Put the finished parts of a block in their place; one process, after all writers are closed.

    Raises:
        DataError: A part is missing: the ranks do not share the folder.
    """
    names = [name for part in range(num_parts) for name in _part_files(part)]
    missing = [name for name in names if not (staging / name).exists()]
    if missing:
        raise DataError(
            f"`data.cache_dir` must be a folder that all ranks share, but {staging.parent} got no {missing[0]} "
            "from another node instead. Set data.cache_dir to a shared file system."
        )
    meta = {
        "version": VERSION,
        "described": dict(described),
        "precision": precision,
        "files": {name: (staging / name).stat().st_size for name in names},
        "indices": {name: file_digest(staging / name) for name in names if name.endswith(".npy")},
    }
    (staging / META).write_text(sealed_text(meta), encoding="utf-8")
    put_in_place(staging, target, keeps=is_whole)


def is_whole(folder: Path) -> bool:
    """Tell whether a published block is there with all its bytes."""
    try:
        _read_meta(folder)
    except DataError:
        return False
    return True


class BaseReference:
    """A published reference, mapped; any thread may read it."""

    def __init__(
        self, folders: Sequence[Path], sources: Mapping[int, int], who: str = "the base model"
    ) -> None:
        """Open a reference.

        Args:
            folders: Of its blocks.
            sources: Number of the source in the run -> its place among the sources of the reference.
            who: Said it, for what is said of it.
        Raises:
            DataError: A block is not there, or damaged.
        """
        self._who, self._sources = who, dict(sources)
        self._parts: list[_ReadPart] = []
        indices = []
        for folder in folders:
            meta = _read_meta(folder, who)
            dtype = KINDS[meta["precision"]]
            for number in range(len(meta["files"]) // len(_part_files(0))):
                ids, log_probs, index = (folder / name for name in _part_files(number))
                found = np.load(index, allow_pickle=False)
                num_rows = int(found[:, 3].sum())
                indices.append(np.insert(found, 2, len(self._parts), axis=1))
                read = _mapped(ids, IDS, num_rows), _mapped(log_probs, dtype, num_rows)
                self._parts.append(_ReadPart(folder, _part_files(number)[:2], *read))
        packs = np.concatenate([np.empty((0, 7), dtype=np.int64), *indices], dtype=np.int64)
        self.num_positions = int(packs[:, 4].sum())
        self.num_top = max((part.ids.shape[1] for part in self._parts), default=0)
        self._where: dict[int, Int64s] = {}
        """By place of the source: part, first row, rows and digest of each pack; -1 where it is not there."""
        for place in np.unique(packs[:, 0]).tolist():
            mine = packs[packs[:, 0] == place]
            where = np.full((int(mine[:, 1].max()) + 1, 5), -1, dtype=np.int64)
            where[mine[:, 1]] = mine[:, 2:]
            self._where[place] = where

    def rows_of(self, micro: MicroBatch, refs: Sequence[PackRef]) -> BaseRows | None:
        """Read what is said of the packs of a micro-batch; None if nothing is said of any of them.

        Raises:
            DataError: A pack of its sources is not in the reference, or is another one there, or is damaged.
        """
        rows, ids, log_probs = [], [], []
        seq_len = micro.labels_BT.shape[1]
        for row, ref in enumerate(refs):
            place = self._sources.get(ref.source)
            if place is None:
                continue
            at = np.flatnonzero(micro.labels_BT[row] != IGNORE)
            where = self._where.get(place, np.empty((0, 5), dtype=np.int64))
            part, first, count, *digest = (
                where[ref.pack].tolist() if ref.pack < len(where) else (-1, 0, 0, 0, 0)
            )
            if part < 0 or count != len(at):
                raise DataError(
                    f"{self._root} must hold {self._who}'s log-probabilities at {len(at)} positions of pack "
                    f"{ref.pack} of its source {place}, but holds {max(count, 0)} instead. Delete that folder."
                )
            rows.append(at + row * seq_len)
            ids.append(np.array(self._parts[part].ids[first : first + count]))
            log_probs.append(np.array(self._parts[part].log_probs[first : first + count]))
            if _row_digest(ids[-1], log_probs[-1]) != tuple(digest):
                read = self._parts[part]
                reason = f"pack {ref.pack} in {' or '.join(read.names)} is not as it was written"
                raise _damaged(read.folder, reason, self._who)
        if not sum(map(len, rows)):
            return None
        found_RK, found = np.concatenate(ids), np.concatenate(log_probs)
        num_top = found_RK.shape[1]
        rest = found[:, num_top] if found.shape[1] > num_top else None
        return BaseRows(np.concatenate(rows), found_RK, found[:, :num_top], rest)

    @property
    def _root(self) -> Path:
        return self._parts[0].folder.parent if self._parts else Path()


@dataclass(frozen=True, slots=True)
class _ReadPart:
    """What one rank wrote of a block, mapped."""

    folder: Path
    names: tuple[str, ...]
    ids: npt.NDArray[Any]
    log_probs: npt.NDArray[Any]


def _mapped(file: Path, dtype: np.dtype[Any], num_rows: int) -> npt.NDArray[Any]:
    if file.stat().st_size == 0:  # an empty file cannot be mapped
        return np.empty((0, 0), dtype=dtype)
    return np.memmap(file, dtype=dtype, mode="r").reshape(num_rows, -1)


def _row_digest(ids_QK: npt.NDArray[Any], log_probs_QK: npt.NDArray[Any]) -> tuple[int, ...]:
    """Return the digest of a pack's rows as two numbers, which an index of numbers can hold."""
    return tuple(np.frombuffer(part_digest(ids_QK.tobytes(), log_probs_QK.tobytes()), dtype="<i8").tolist())


def _part_files(part: int) -> tuple[str, str, str]:
    return f"{part:05d}.ids.bin", f"{part:05d}.log_probs.bin", f"{part:05d}.index.npy"


def _read_meta(folder: Path, who: str = "the base model") -> dict[str, Any]:
    try:
        meta = read_sealed(folder / META)
        whole = meta["version"] == VERSION
        for name, size in meta["files"].items():
            whole = whole and (folder / name).stat().st_size == size
        if whole:
            changed = [
                name for name, digest in meta["indices"].items() if file_digest(folder / name) != digest
            ]
            if changed:
                raise ValueError(f"{changed[0]} is not as it was written")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(folder, str(error), who) from error
    if not whole:
        raise _damaged(folder, "it is of another version or a file has another size", who)
    return meta


def _damaged(folder: Path, reason: str, who: str) -> DataError:
    return DataError(
        f"{folder} must hold {who}'s log-probabilities whole, but {reason}. Delete that folder; the next "
        "start makes it again."
    )


def _sync(stream: IO[Any]) -> None:
    stream.flush()
    os.fsync(stream.fileno())
