"""What a model said of answers before anything was trained: the sum of each answer's log-probabilities.

Eight bytes an answer, in memory on every rank, and on disk in `data.cache_dir/answer_sums/KEY`: one file of numbers and
a meta.json with its digest.

Shapes: A answers, in the order of splits, sources and packs that a question names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.pack.refs import PackRef
from trainer.data.store.store import META, SplitStore
from trainer.data.types import Float64s, Int64s, Unit
from trainer.errors import DataError
from trainer.runtime.publish import publish_folder
from trainer.runtime.seal import file_digest, read_sealed, sealed_text

VERSION = 1
SUMS = "sums.bin"
DTYPE = np.dtype("<f8")
"""A log-ratio is a small difference of two such sums, of which float32 would keep but a few digits."""


def answer_sums_folder(cache_dir: Path) -> Path:
    """Return the folder that holds sums by key."""
    return cache_dir / "answer_sums"


@dataclass(frozen=True, slots=True)
class AnswerPacks:
    """Packs of answers of a split."""

    stores: Sequence[SplitStore]
    """Of all sources of the run, in their order."""
    packs: Mapping[int, Int64s]
    """By number of the source, ascending."""

    @property
    def refs(self) -> list[PackRef]:
        """Return them in order."""
        return [PackRef(source, pack, 0) for source, packs in self.packs.items() for pack in packs.tolist()]

    @property
    def num_answers(self) -> int:
        """Count their answers."""
        return sum(int(self.sizes(source)[packs].sum()) for source, packs in self.packs.items())

    @property
    def described(self) -> list[list[str | int]]:
        """Return what names the tokens and marks of these packs, whatever store holds them."""
        found: list[list[str | int]] = []
        for source, packs in self.packs.items():
            digest = hashlib.sha256(b"".join(map(self.stores[source].pack_digest, packs.tolist())))
            found.append([len(packs), digest.hexdigest()])
        return found

    def sizes(self, source: int) -> Int64s:
        """Return the pieces of each pack of a source: of a pair they are two."""
        store = self.stores[source]
        return store.pack_units.astype(np.int64) * (2 if store.unit is Unit.pair else 1)


class AnswerSums:
    """Sums of packs, by pack. Any thread may read it."""

    def __init__(self, asked: AnswerPacks, sums_A: Float64s) -> None:
        """Lay out the sums of what was asked."""
        assert len(sums_A) == asked.num_answers, "there is a sum for every answer"
        self._asked = asked
        self._sums_A = sums_A
        self._first: dict[int, Int64s] = {}
        """By source: where the answers of each pack begin; -1 where it was not asked about."""
        begin = 0
        for source, packs in asked.packs.items():
            sizes = asked.sizes(source)[packs]
            first = np.full(asked.stores[source].num_packs, -1, dtype=np.int64)
            first[packs] = begin + np.cumsum(sizes) - sizes
            self._first[source] = first
            begin += int(sizes.sum())

    def of(self, refs: Sequence[PackRef]) -> Float64s:
        """Return the sums of the pieces of packs, in their order; 0 of sources that hold no answers.

        Raises:
            DataError: A pack was not asked about.
        """
        return np.concatenate([np.empty(0), *map(self._of_pack, refs)])

    def _of_pack(self, ref: PackRef) -> Float64s:
        size = int(self._asked.sizes(ref.source)[ref.pack])
        if ref.source not in self._first:
            return np.zeros(size)
        first = int(self._first[ref.source][ref.pack])
        if first < 0:
            raise DataError(
                f"The reference must have been asked about pack {ref.pack} of source {ref.source}, but was not. "
                "Report this run: it draws other packs than it planned."
            )
        return self._sums_A[first : first + size]


def write_sums(folder: Path, sums_A: Float64s, described: Mapping[str, Any]) -> None:
    """Put sums in their place; one process.

    Raises:
        OSError: The disk is full or cannot be written.
    """

    def fill(staging: Path) -> None:
        (staging / SUMS).write_bytes(sums_A.astype(DTYPE).tobytes())
        meta = {
            "version": VERSION,
            "described": dict(described),
            "num_answers": len(sums_A),
            "sha256": file_digest(staging / SUMS),
        }
        (staging / META).write_text(sealed_text(meta), encoding="utf-8")

    publish_folder(folder, fill)


def read_sums(folder: Path, num_answers: int) -> Float64s:
    """Read sums that are whole.

    Raises:
        OSError: They are not there.
        ValueError: They are not as they were written.
    """
    meta = read_sealed(folder / META)
    if (meta.get("version"), meta.get("num_answers")) != (VERSION, num_answers):
        raise ValueError("it is of another version or of other answers")
    if file_digest(folder / SUMS) != meta.get("sha256"):
        raise ValueError(f"{SUMS} is not as it was written")
    return np.fromfile(folder / SUMS, dtype=DTYPE).astype(np.float64)
