"""Keeps encoded units on disk until the last one is known: only then can they be split and packed.

Memory holds 14 bytes a document and the current batch, however large the corpus is.
"""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trainer.data.pack.pack import sum_runs
from trainer.data.store.held_back import split_hash
from trainer.data.types import Bools, Bytes, EncodedBatch, Int32s, Uint32s

COPY_TOKENS = 1 << 22


@dataclass(slots=True)
class SpoolBlock:
    """Consecutive tokens of the units that were asked for."""

    tokens: Uint32s
    supervised: Bytes


class Spool:
    """Units appended one after the other; read back in order, those of one split at a time."""

    def __init__(self, folder: Path) -> None:
        """Open the two files of a spool in an existing folder."""
        self._tokens_file = folder / "spool-tokens"
        self._supervised_file = folder / "spool-supervised"
        self._tokens = self._tokens_file.open("wb")
        self._supervised = self._supervised_file.open("wb")
        self._lengths = array("i")
        self._unit_pieces = array("H")
        self._hashes = array("Q")
        self.max_id = -1
        self.num_supervised = 0
        self.num_tokens = 0

    def add(self, batch: EncodedBatch) -> None:
        """Append the units of a batch."""
        assert batch.lengths.sum() == len(batch.tokens) == len(batch.supervised), (
            "lengths do not tile the tokens"
        )
        assert batch.unit_pieces.sum() == len(batch.lengths), "units do not tile the pieces"
        if not len(batch.lengths):
            return
        # Plain writes, not memory maps: a full disk is then an error and not a dead process.
        self._tokens.write(np.ascontiguousarray(batch.tokens, dtype="<u4").data)
        self._supervised.write(np.ascontiguousarray(batch.supervised, dtype=np.uint8).data)
        self._lengths.extend(batch.lengths.tolist())
        self._unit_pieces.extend(batch.unit_pieces.tolist())
        self._hashes.extend(split_hash(digest) for digest in batch.digests)
        self.max_id = max(self.max_id, int(batch.tokens.max()))
        self.num_supervised += int(np.count_nonzero(batch.supervised))
        self.num_tokens += len(batch.tokens)

    @property
    def lengths(self) -> Int32s:
        """Tokens of each piece, in order."""
        return np.array(self._lengths, dtype=np.int32)

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
        self._tokens.flush()
        self._supervised.flush()
        lengths = sum_runs(self.lengths, self.unit_pieces)
        ends = np.cumsum(lengths, dtype=np.int64)
        first, done = 0, 0
        with self._tokens_file.open("rb") as tokens, self._supervised_file.open("rb") as supervised:
            while first < len(lengths):
                last = max(int(np.searchsorted(ends, done + COPY_TOKENS, side="right")), first + 1)
                count = int(ends[last - 1]) - done
                keep = np.repeat(wanted[first:last], lengths[first:last])
                ids = np.frombuffer(tokens.read(4 * count), dtype="<u4")[keep]
                marks = np.frombuffer(supervised.read(count), dtype=np.uint8)[keep]
                yield SpoolBlock(ids, marks)
                first, done = last, done + count

    def delete(self) -> None:
        """Close the files and delete them."""
        for file in (self._tokens_file, self._supervised_file):
            file.unlink(missing_ok=True)
        for stream in (self._tokens, self._supervised):
            # What is still buffered may not fit on a full disk; nobody wants it any more.
            with contextlib.suppress(OSError):
                stream.close()
