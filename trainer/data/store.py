"""Reads token stores: memory-mapped documents of one source and the packs that point into them.

Training imports this where `datasets` is not installed. Writing is in writer.py, finding in prepared.py.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.types import Int32s, Int64s, Pack
from trainer.errors import DataError

FORMAT_VERSION = 2
META = "meta.json"
TRAIN = "train"
VALIDATION = "validation"
TOKENS = "tokens.bin"
SUPERVISED = "supervised.npy"
HASHES = "document_hashes.npy"
ARRAYS = ("piece_start.npy", "piece_len.npy", "pack_offset.npy", "pack_targets.npy")


class SplitStore:
    """The packs of one split, read from disk as they are asked for."""

    def __init__(self, folder: Path, split: dict[str, Any]) -> None:
        """Map the arrays of a split; `split` is its part of the store's meta.json."""
        self.seq_len = int(split["seq_len"])
        self.num_tokens = int(split["num_tokens"])
        self.num_targets = int(split["num_targets"])
        self._hashes_file = folder / HASHES
        self._tokens = _map_tokens(folder / TOKENS, np.dtype(split["dtype"]))
        all_supervised = not (folder / SUPERVISED).exists()
        self._supervised = None if all_supervised else np.load(folder / SUPERVISED, mmap_mode="r")
        start, length, offset, targets = (_load_array(folder / name) for name in ARRAYS)
        self._piece_start: Int64s = start
        self._piece_len: Int32s = length
        self._pack_offset: Int64s = offset
        self.pack_targets: Int32s = targets
        self.num_packs = len(targets)
        ends = np.concatenate([[0], np.cumsum(length, dtype=np.int64)])
        self.pack_tokens: Int32s = np.diff(ends[offset]).astype(np.int32)

    @property
    def num_pieces(self) -> int:
        """Number of isolated pieces in all packs."""
        return len(self._piece_len)

    def document_hashes(self) -> npt.NDArray[np.uint64]:
        """Read the sorted content hashes of the split's documents."""
        hashes: npt.NDArray[np.uint64] = np.load(self._hashes_file, allow_pickle=False)
        return hashes

    def pack(self, index: int) -> Pack:
        """Return a pack by its number in [0, num_packs).

        Raises:
            IndexError: If there is no such pack.
        """
        if not 0 <= index < self.num_packs:
            raise IndexError(f"pack {index} of {self.num_packs}")
        return self._join(int(self._pack_offset[index]), int(self._pack_offset[index + 1]))

    def piece(self, index: int) -> Pack:
        """Return one isolated piece as a pack of its own; reports show these."""
        return self._join(index, index + 1)

    def _join(self, first: int, last: int) -> Pack:
        starts = self._piece_start[first:last].tolist()
        lengths = self._piece_len[first:last].tolist()
        ranges = [slice(s, s + n) for s, n in zip(starts, lengths, strict=True)]
        tokens = np.concatenate([self._tokens[r] for r in ranges]).astype(np.int64)
        if self._supervised is None:
            supervised = np.ones(len(tokens), dtype=np.bool_)
        else:
            supervised = np.concatenate([self._supervised[r] for r in ranges]).astype(np.bool_)
        return Pack(tokens, supervised, lengths)


@dataclass(slots=True)
class Store:
    """One source, tokenised and packed. Its digest names everything that shaped it."""

    digest: str
    meta: dict[str, Any]
    train: SplitStore
    validation: SplitStore


def open_store(path: Path) -> Store:
    """Open a store and check that it is whole: its version, and the size of every array.

    Raises:
        DataError: If it is not there, of another version, or damaged.
    """
    try:
        meta = json.loads((path / META).read_text(encoding="utf-8"))
        version = meta["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, f"has no readable {META}") from error
    if version != FORMAT_VERSION:
        raise DataError(
            f"The token store {path} must be of version {FORMAT_VERSION}, but is of version {version} "
            "instead. Run `palimpsest prepare` again."
        )
    try:
        for name, array in meta["arrays"].items():
            file = path / name
            size = file.stat().st_size if file.exists() else -1
            if size != array["bytes"]:
                raise _damaged(path, f"{name} has {size} bytes instead of {array['bytes']}")
        train, validation = (SplitStore(path / s, meta["splits"][s]) for s in (TRAIN, VALIDATION))
        return Store(meta["digest"], meta, train, validation)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(
        f"The token store {path} must be whole, but {reason}. Delete that folder and run "
        "`palimpsest prepare` again."
    )


def _map_tokens(file: Path, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    if file.stat().st_size == 0:  # an empty file cannot be mapped
        return np.empty(0, dtype=dtype)
    return np.memmap(file, dtype=dtype, mode="r")


def _load_array(file: Path) -> npt.NDArray[Any]:
    # Small beside the tokens, and read at random: hold them in memory.
    array: npt.NDArray[Any] = np.load(file, allow_pickle=False)
    return array
