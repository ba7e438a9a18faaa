"""The plan: which pack is the k-th of the run. A pure function, the same on any number of ranks.

Holds no list of packs: a seeded permutation is computed per index, so a plan of a trillion tokens
takes no more memory than a small one, and resuming needs one integer, the step.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from trainer.errors import DataError


@dataclass(frozen=True, slots=True)
class PackRef:
    """One pack of the run: a source, a pack inside it, and which pass over the data this is."""

    source: int
    pack: int
    epoch: int


class Permutation:
    """A seeded permutation of range(size) with no table: a four-round Feistel network, cycle-walked.

    Source: Black and Rogaway 2002, "Ciphers with arbitrary finite domains" (cycle walking).
    """

    def __init__(self, size: int, seed: int, epoch: int) -> None:
        """Derive the round keys from seed and epoch."""
        self.size = size
        self._half_bits = max((max(size - 1, 1).bit_length() + 1) // 2, 1)
        self._mask = (1 << self._half_bits) - 1
        digest = hashlib.sha256(f"palimpsest-plan:{seed}:{epoch}:{size}".encode()).digest()
        self._keys = [int.from_bytes(digest[i * 8 : i * 8 + 8], "little") for i in range(4)]

    def __call__(self, index: int) -> int:
        """Return the image of index."""
        while True:
            index = self._round_trip(index)
            if index < self.size:
                return index

    def _round_trip(self, value: int) -> int:
        left, right = value >> self._half_bits, value & self._mask
        for key in self._keys:
            mixed = (right + key) & 0xFFFFFFFFFFFFFFFF
            mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
            mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
            left, right = right, left ^ ((mixed ^ (mixed >> 31)) & self._mask)
        return (left << self._half_bits) | right


class DataPlan:
    """Which packs every optimizer step trains on."""

    def __init__(
        self, num_packs: Sequence[int], packs_per_step: int, seed: int, shuffle: bool = True
    ) -> None:
        """Lay the sources' packs end to end and permute them anew every epoch."""
        self._offsets = [0, *accumulate(num_packs)]
        self.packs_per_epoch = self._offsets[-1]
        self.packs_per_step = packs_per_step
        if self.packs_per_epoch == 0:
            raise DataError(
                "`data.sources` must hold at least one training pack, but hold none instead. "
                "Add documents or lower data.validation_frac."
            )
        self._seed = seed
        self._shuffle = shuffle
        self._permutation: tuple[int, Permutation] | None = None

    def packs_of_step(self, step: int) -> list[PackRef]:
        """Return the packs of a zero-based optimizer step, over all ranks, in order."""
        first = step * self.packs_per_step
        return [self.pack_ref(first + i) for i in range(self.packs_per_step)]

    def pack_ref(self, position: int) -> PackRef:
        """Return the pack at a position of the run."""
        epoch, index = divmod(position, self.packs_per_epoch)
        if self._shuffle:
            index = self._permuted(epoch, index)
        source = bisect.bisect_right(self._offsets, index) - 1
        return PackRef(source, index - self._offsets[source], epoch)

    def _permuted(self, epoch: int, index: int) -> int:
        if self._permutation is None or self._permutation[0] != epoch:
            self._permutation = (epoch, Permutation(self.packs_per_epoch, self._seed, epoch))
        return self._permutation[1](index)


def num_steps(
    plan: DataPlan,
    seq_len: int,
    max_steps: int | None,
    max_epochs: float | None,
    max_tokens: int | None,
) -> int:
    """Return the optimizer steps of the run from whichever length was given; at least one."""
    if max_steps is not None:
        return max_steps
    if max_tokens is not None:
        return max(round(max_tokens / (plan.packs_per_step * seq_len)), 1)
    assert max_epochs is not None
    return max(round(max_epochs * plan.packs_per_epoch / plan.packs_per_step), 1)
