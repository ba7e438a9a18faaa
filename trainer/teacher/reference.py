"""What the base model says of replay packs, on disk: its most likely next tokens at every supervised position.

A folder `data.cache_dir/references/KEY` holds one part for each rank that made it, written front to back, and a
meta.json that comes last. Readers map the parts; the number of ranks that read does not matter. The index of a part
holds a digest of the rows of each pack, which readers compare.

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

VERSION = 2
IDS = np.dtype("<i4")
LOG_PROBS = np.dtype("<f2")
"""On 1,174 positions of prose, code and numbers, SmolLM2-135M is 3e-7 nats from itself when rounded so (at most
5e-5), its gradient 3e-4 (at most 9e-4; bf16 rounds a gradient by 4e-3); float32 would take a third more."""
BYTES_PER_TOKEN = IDS.itemsize + LOG_PROBS.itemsize
"""Of one kept token at one position."""


@dataclass(slots=True)
class BaseRows:
    """What the base model says of the replay in a micro-batch: its K most likely tokens at R positions.

    Shapes: rows_R int64, ascending in [0, B*T); ids_RK int32; log_probs_RK float16, in nats.
    """

    rows_R: npt.NDArray[np.int64]
    ids_RK: npt.NDArray[np.int32]
    log_probs_RK: npt.NDArray[np.float16]


def references_folder(cache_dir: Path) -> Path:
    """Return the folder that holds references by key."""
    return cache_dir / "references"


class ReferenceWriter:
    """Writes one rank's part; other ranks write theirs beside it."""

    def __init__(self, folder: Path, rank: int) -> None:
        """Open the part's files in a staging folder that every rank sees."""
        self._ids, self._log_probs, self._index = (folder / name for name in _part_files(rank))
        self._streams = [self._ids.open("wb"), self._log_probs.open("wb")]
        self._rows: list[tuple[int, ...]] = []
        self._num_rows = 0

    def add(
        self, source: int, pack: int, ids_QK: npt.NDArray[np.int32], log_probs_QK: npt.NDArray[np.float32]
    ) -> None:
        """Append a pack; `source` counts the sources of the reference."""
        ids, log_probs = (
            np.ascontiguousarray(ids_QK, dtype=IDS),
            np.ascontiguousarray(log_probs_QK, dtype=LOG_PROBS),
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


def publish(staging: Path, target: Path, described: Mapping[str, Any], num_parts: int) -> None:
    """Put the finished parts in their place; one process, after all writers are closed.

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
        "files": {name: (staging / name).stat().st_size for name in names},
        "indices": {name: file_digest(staging / name) for name in names if name.endswith(".npy")},
    }
    (staging / META).write_text(sealed_text(meta), encoding="utf-8")
    put_in_place(staging, target, keeps=is_whole)


def is_whole(folder: Path) -> bool:
    """Tell whether a published reference is there with all its bytes."""
    try:
        _read_meta(folder)
    except DataError:
        return False
    return True


class BaseReference:
    """A published reference, mapped; any thread may read it."""

    def __init__(self, folder: Path, sources: Mapping[int, int]) -> None:
        """Open a reference.

        Args:
            sources: Number of the source in the run -> its place among the sources of the reference.
        Raises:
            DataError: It is not there, or damaged.
        """
        num_parts = len(_read_meta(folder)["files"]) // len(_part_files(0))
        self._folder = folder
        self._sources = dict(sources)
        files = [tuple(folder / name for name in _part_files(part)) for part in range(num_parts)]
        found = [np.load(index, allow_pickle=False) for _, _, index in files]
        packs = np.concatenate(
            [np.insert(index, 2, part, axis=1) for part, index in enumerate(found)], dtype=np.int64
        )
        self.num_positions = int(packs[:, 4].sum())
        num_kept = sum(ids.stat().st_size for ids, _, _ in files) // IDS.itemsize
        self.num_top = num_kept // max(self.num_positions, 1)
        self._parts = [(self._map(ids, IDS), self._map(log_probs, LOG_PROBS)) for ids, log_probs, _ in files]
        self._where: dict[int, Int64s] = {}
        """By place of the source: part, first row, rows and digest of each pack; -1 where it is not there."""
        for place in np.unique(packs[:, 0]).tolist():
            mine = packs[packs[:, 0] == place]
            where = np.full((int(mine[:, 1].max()) + 1, 5), -1, dtype=np.int64)
            where[mine[:, 1]] = mine[:, 2:]
            self._where[place] = where

    def _map(self, file: Path, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        if file.stat().st_size == 0:  # an empty file cannot be mapped
            return np.empty((0, self.num_top), dtype=dtype)
        return np.memmap(file, dtype=dtype, mode="r").reshape(-1, self.num_top)

    def rows_of(self, micro: MicroBatch, refs: Sequence[PackRef]) -> BaseRows | None:
        """Read what the base says of the packs of a micro-batch; None if none of them is replay.

        Raises:
            DataError: A pack of a replay source is not in the reference, or is another one there, or is damaged.
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
                    f"{self._folder} must hold the base model's log-probabilities at {len(at)} positions of pack "
                    f"{ref.pack} of replay source {place}, but holds {max(count, 0)} instead. Delete that folder."
                )
            rows.append(at + row * seq_len)
            ids.append(np.array(self._parts[part][0][first : first + count]))
            log_probs.append(np.array(self._parts[part][1][first : first + count]))
            if _row_digest(ids[-1], log_probs[-1]) != tuple(digest):
                where_read = " or ".join(_part_files(part)[:2])
                raise _damaged(self._folder, f"pack {ref.pack} in {where_read} is not as it was written")
        if not sum(map(len, rows)):
            return None
        return BaseRows(np.concatenate(rows), np.concatenate(ids), np.concatenate(log_probs))


def _row_digest(ids_QK: npt.NDArray[Any], log_probs_QK: npt.NDArray[Any]) -> tuple[int, ...]:
    """Return the digest of a pack's rows as two numbers, which an index of numbers can hold."""
    return tuple(np.frombuffer(part_digest(ids_QK.tobytes(), log_probs_QK.tobytes()), dtype="<i8").tolist())


def _part_files(part: int) -> tuple[str, str, str]:
    return f"{part:05d}.ids.bin", f"{part:05d}.log_probs.bin", f"{part:05d}.index.npy"


def _read_meta(folder: Path) -> dict[str, Any]:
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
        raise _damaged(folder, str(error)) from error
    if not whole:
        raise _damaged(folder, "it is of another version or a file has another size")
    return meta


def _damaged(folder: Path, reason: str) -> DataError:
    return DataError(
        f"{folder} must hold the base model's log-probabilities whole, but {reason}. Delete that folder; the next "
        "start makes it again."
    )


def _sync(stream: IO[Any]) -> None:
    stream.flush()
    os.fsync(stream.fileno())
