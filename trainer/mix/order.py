"""The endless order of a pool's packs: a seeded permutation an epoch, computed in chunks, never as a whole table.

Shapes: K positions of a chunk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from trainer.data.pack.refs import PackRef
from trainer.data.types import Int64s

CHUNK = 8192
"""Positions computed at once: enough for numpy to pay, too few to be seen in memory."""

UInt64s = npt.NDArray[np.uint64]


class Permutation:
    """A seeded permutation of range(size) with no table: a four-round Feistel network, cycle-walked.

    Source: Black and Rogaway 2002, "Ciphers with arbitrary finite domains" (cycle walking).
    """

    def __init__(self, size: int, seed: int, epoch: int, salt: str = "") -> None:
        """Derive the round keys; `salt` gives pools of one size different orders."""
        self.size = size
        half_bits = max((max(size - 1, 1).bit_length() + 1) // 2, 1)
        self._half_bits = np.uint64(half_bits)
        self._mask = np.uint64((1 << half_bits) - 1)
        digest = hashlib.sha256(f"palimpsest-plan:{seed}:{epoch}:{size}:{salt}".encode()).digest()
        self._keys = np.frombuffer(digest, dtype="<u8", count=4).astype(np.uint64)

    def __call__(self, indices: Int64s) -> Int64s:
        """Return the images of indices in [0, size)."""
        images = self._round_trip(indices.astype(np.uint64))
        while (outside := np.flatnonzero(images >= self.size)).size:
            images[outside] = self._round_trip(images[outside])
        return images.astype(np.int64)

    def _round_trip(self, values: UInt64s) -> UInt64s:
        left, right = values >> self._half_bits, values & self._mask
        for key in self._keys:
            mixed = right + key  # wraps around at 2^64, as it should
            mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            left, right = right, left ^ ((mixed ^ (mixed >> np.uint64(31))) & self._mask)
        return (left << self._half_bits) | right


class PoolOrder:
    """The packs of one or several sources, laid end to end and permuted anew every epoch."""

    def __init__(
        self,
        name: str,
        sources: Sequence[int],
        targets: Sequence[npt.NDArray[np.int32]],
        seed: int,
        shuffle: bool,
    ) -> None:
        """Take the numbers of the sources and, for each, the supervised targets of its packs."""
        self._name = name
        self._sources = np.array(sources, dtype=np.int64)
        self._targets = list(targets)
        self._offsets = np.concatenate([[0], np.cumsum([len(t) for t in targets])]).astype(np.int64)
        self.num_packs = int(self._offsets[-1])
        self._seed = seed
        self._shuffle = shuffle
        self._chunk = min(CHUNK, max(self.num_packs, 16))
        self._chunk_start = -self._chunk

    def targets_from(self, position: int) -> list[int]:
        """Return the supervised targets of the packs from a position to the end of its chunk."""
        at = self._place(position)
        return self._chunk_targets[at:]

    def ref(self, position: int) -> PackRef:
        """Return the pack at a position."""
        at = self._place(position)
        return PackRef(self._chunk_sources[at], self._chunk_packs[at], position // self.num_packs)

    def number_at(self, position: int) -> int:
        """Return the number in the pool of the pack at a position of the permutation."""
        at = self._place(position)
        return int(self._chunk_numbers[at])

    def ref_of(self, number: int, epoch: int) -> PackRef:
        """Return a pack by its number in the pool."""
        part = int(np.searchsorted(self._offsets, number, side="right")) - 1
        return PackRef(int(self._sources[part]), number - int(self._offsets[part]), epoch)

    def targets_of(self, number: int) -> int:
        """Return the supervised targets of a pack by its number in the pool."""
        part = int(np.searchsorted(self._offsets, number, side="right")) - 1
        return int(self._targets[part][number - int(self._offsets[part])])

    def _place(self, position: int) -> int:
        """Return the place of a position in the chunk that holds it, computed if it is another one."""
        if not 0 <= position - self._chunk_start < self._chunk:
            self._load(position - position % self._chunk)
        return position - self._chunk_start

    def _load(self, start: int) -> None:
        positions_K = np.arange(start, start + self._chunk, dtype=np.int64)
        epochs_K, indices_K = np.divmod(positions_K, self.num_packs)
        if self._shuffle:
            for epoch in np.unique(epochs_K).tolist():
                inside = epochs_K == epoch
                permutation = Permutation(self.num_packs, self._seed, epoch, self._name)
                indices_K[inside] = permutation(indices_K[inside])
        part_K = np.searchsorted(self._offsets, indices_K, side="right") - 1
        packs_K = indices_K - self._offsets[part_K]
        targets_K = np.zeros(self._chunk, dtype=np.int64)
        for part, targets in enumerate(self._targets):
            inside = part_K == part
            targets_K[inside] = targets[packs_K[inside]]
        self._chunk_sources: list[int] = self._sources[part_K].tolist()
        self._chunk_packs: list[int] = packs_K.tolist()
        self._chunk_targets: list[int] = targets_K.tolist()
        self._chunk_numbers = indices_K
        self._chunk_start = start
