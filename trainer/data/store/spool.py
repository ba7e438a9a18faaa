"""Keeps encoded documents on disk until the last one is known: only then can they be split and packed.

Memory holds 12 bytes a document and the current batch, however large the corpus is.
"""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trainer.data.store.held_back import split_hash
from trainer.data.types import Bools, Bytes, Int32s, Uint32s

COPY_TOKENS = 1 << 22


@dataclass(slots=True)
class SpoolBlock:
    """Consecutive tokens of the documents that were asked for."""

    tokens: Uint32s
    supervised: Bytes


class Spool:
    """Documents appended one after the other; read back in order, those of one split at a time."""

    def __init__(self, folder: Path) -> None:
        """Open the two files of a spool in an existing folder."""
        self._tokens_file = folder / "spool-tokens"
        self._supervised_file = folder / "spool-supervised"
        self._tokens = self._tokens_file.open("wb")
        self._supervised = self._supervised_file.open("wb")
        self._lengths = array("i")
        self._hashes = array("Q")
        self.max_id = -1
        self.num_supervised = 0
        self.num_tokens = 0

    def add(self, tokens: Uint32s, supervised: Bytes, lengths: list[int], digests: list[bytes]) -> None:
        """Append documents; `tokens` and `supervised` hold them one after the other."""
        assert sum(lengths) == len(tokens) == len(supervised), "lengths do not tile the tokens"
        if not lengths:
            return
        # Plain writes, not memory maps: a full disk is then an error and not a dead process.
        self._tokens.write(np.ascontiguousarray(tokens, dtype="<u4").data)
        self._supervised.write(np.ascontiguousarray(supervised, dtype=np.uint8).data)
        self._lengths.extend(lengths)
        self._hashes.extend(split_hash(digest) for digest in digests)
        self.max_id = max(self.max_id, int(tokens.max()))
        self.num_supervised += int(np.count_nonzero(supervised))
        self.num_tokens += len(tokens)

    @property
    def lengths(self) -> Int32s:
        """Tokens of each document, in order."""
        return np.array(self._lengths, dtype=np.int32)

    @property
    def hashes(self) -> npt.NDArray[np.uint64]:
        """Split hash of each document, in order."""
        return np.array(self._hashes, dtype=np.uint64)

    def read(self, wanted: Bools) -> Iterator[SpoolBlock]:
        """Yield the tokens of the wanted documents, in order, about COPY_TOKENS at a time."""
        self._tokens.flush()
        self._supervised.flush()
        lengths = self.lengths.astype(np.int64)
        ends = np.cumsum(lengths)
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
