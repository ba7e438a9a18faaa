"""Keeps encoded units on disk until the last one is known: only then can they be split and packed.

Memory holds 14 bytes a document, 4 more a piece where prompts are shared, and the current batch, however large the
corpus is.
"""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.pack.pack import sum_runs
from trainer.data.store.held_back import split_hash
from trainer.data.types import Bools, Bytes, EncodedBatch, Float32s, Int32s, Uint32s

COPY_TOKENS = 1 << 22


@dataclass(slots=True)
class SpoolBlock:
    """Consecutive tokens of the units that were asked for."""

    tokens: Uint32s
    supervised: Bytes
    values: dict[str, Float32s]


class Spool:
    """Units appended one after the other; read back in order, those of one split at a time."""

    def __init__(self, folder: Path, values: Sequence[str] = ()) -> None:
        """Open the files of a spool in an existing folder; `values` names the numbers that all tokens have."""
        self.values = tuple(values)
        columns = {"tokens": "<u4", "supervised": "u1"} | dict.fromkeys(map(_column, values), "<f4")
        self._columns = {name: (folder / f"spool-{name}", np.dtype(kind)) for name, kind in columns.items()}
        self._streams = {name: file.open("wb") for name, (file, _) in self._columns.items()}
        self._lengths = array("i")
        self._prefixes = array("i")
        self._unit_pieces = array("H")
        self._hashes = array("Q")
        self.max_id = -1
        self.num_supervised = 0
        self.num_tokens = 0

    def add(self, batch: EncodedBatch, prefixes: Int32s | None = None) -> None:
        """Append the units of a batch, with what each piece shares of its unit's first: for every batch or for none."""
        assert batch.lengths.sum() == len(batch.tokens) == len(batch.supervised), (
            "lengths do not tile the tokens"
        )
        assert batch.unit_pieces.sum() == len(batch.lengths), "units do not tile the pieces"
        assert batch.values.keys() == set(self.values), "a batch has other numbers than declared"
        if not len(batch.lengths):
            return
        # Plain writes, not memory maps: a full disk is then an error and not a dead process.
        columns: dict[str, npt.NDArray[Any]] = {"tokens": batch.tokens, "supervised": batch.supervised}
        columns |= {_column(name): values for name, values in batch.values.items()}
        for name, values in columns.items():
            assert len(values) == len(batch.tokens), f"{name} is not of every token"
            self._streams[name].write(np.ascontiguousarray(values, dtype=self._columns[name][1]).data)
        self._lengths.extend(batch.lengths.tolist())
        if prefixes is not None:
            self._prefixes.extend(prefixes.tolist())
        self._unit_pieces.extend(batch.unit_pieces.tolist())
        self._hashes.extend(split_hash(digest) for digest in batch.digests)
        self.max_id = max(self.max_id, int(batch.tokens.max()))
        self.num_supervised += int(np.count_nonzero(batch.supervised))
        self.num_tokens += len(batch.tokens)

    @property
    def num_units(self) -> int:
        """Number of units so far."""
        return len(self._unit_pieces)

    @property
    def lengths(self) -> Int32s:
        """Tokens of each piece, in order."""
        return np.array(self._lengths, dtype=np.int32)

    @property
    def prefixes(self) -> Int32s:
        """Tokens of each piece that stand in the first of its unit, in order."""
        return np.array(self._prefixes, dtype=np.int32)

    @property
    def unit_pieces(self) -> Int32s:
        """Pieces of each unit, in order."""
        return np.array(self._unit_pieces, dtype=np.int32)

    @property
    def hashes(self) -> npt.NDArray[np.uint64]:
        """Split hash of each unit, in order."""
        return np.array(self._hashes, dtype=np.uint64)

    def read(self, wanted: Bools) -> Iterator[SpoolBlock]:
        """Yield the tokens of the wanted units, in order, about COPY_TOKENS at a time."""
        for stream in self._streams.values():
            stream.flush()
        lengths = sum_runs(self.lengths, self.unit_pieces)
        ends = np.cumsum(lengths, dtype=np.int64)
        first, done = 0, 0
        with contextlib.ExitStack() as opened:
            files = {
                name: (opened.enter_context(file.open("rb")), dtype)
                for name, (file, dtype) in self._columns.items()
            }
            while first < len(lengths):
                last = max(int(np.searchsorted(ends, done + COPY_TOKENS, side="right")), first + 1)
                count = int(ends[last - 1]) - done
                keep = np.repeat(wanted[first:last], lengths[first:last])
                found = {
                    name: np.frombuffer(file.read(dtype.itemsize * count), dtype=dtype)[keep]
                    for name, (file, dtype) in files.items()
                }
                numbers = {name: found[_column(name)] for name in self.values}
                yield SpoolBlock(found["tokens"], found["supervised"], numbers)
                first, done = last, done + count

    def delete(self) -> None:
        """Close the files and delete them."""
        for file, _ in self._columns.values():
            file.unlink(missing_ok=True)
        for stream in self._streams.values():
            # What is still buffered may not fit on a full disk; nobody wants it any more.
            with contextlib.suppress(OSError):
                stream.close()


def _column(value: str) -> str:
    return f"value-{value}"
