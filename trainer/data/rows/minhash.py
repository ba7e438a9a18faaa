"""Near-duplicates by MinHash (Broder 1997, doi:10.1109/SEQUEN.1997.666900) and bands of it; a document at a time.

Two documents are alike by the Jaccard similarity of their sets of 5 words in a row; the share of equal values of two
signatures estimates it, within 0.07 of 0.8 in 95 of 100 pairs. Pairs with an equal band are compared; bands are as long
as they may be for 99 of 100 pairs at the threshold to have one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from trainer.data.types import Uint32s

SHINGLE_WORDS = 5
NUM_HASHES = 120
MOST_MISSED = 0.01
"""Share of pairs of just the similarity that is looked for that have no equal band."""
SEED = 20_250_101
CHUNK = 4096
"""Runs of words that are hashed at once: 4 MB."""
_drawn = np.random.default_rng(SEED)
_FACTORS = _drawn.integers(0, 2**64, NUM_HASHES, dtype=np.uint64) | np.uint64(1)
_OFFSETS = _drawn.integers(0, 2**64, NUM_HASHES, dtype=np.uint64)


def signature_of(text: str) -> Uint32s:
    """Return the MinHash values of a text, [NUM_HASHES]: of words in lower case; a shorter text is one run."""
    words = text.lower().split()
    runs = {" ".join(words[at : at + SHINGLE_WORDS]) for at in range(max(len(words) - SHINGLE_WORDS + 1, 1))}
    raw = b"".join(
        hashlib.blake2b(run.encode("utf-8", "surrogatepass"), digest_size=8).digest() for run in runs
    )
    hashed: npt.NDArray[np.uint64] = np.frombuffer(raw, dtype="<u8").astype(np.uint64)
    least = np.full(NUM_HASHES, np.iinfo(np.uint32).max, dtype=np.uint32)
    for start in range(0, len(hashed), CHUNK):
        # Multiply and shift (Dietzfelbinger et al. 1997); the product wraps at 2^64 on purpose.
        mixed = (hashed[start : start + CHUNK, None] * _FACTORS + _OFFSETS) >> np.uint64(32)
        least = np.minimum(least, mixed.min(axis=0).astype(np.uint32))
    return least


def rows_of_band(threshold: float) -> int:
    """Return the values of a band: the most that divide NUM_HASHES with at most MOST_MISSED of pairs missed.

    Args:
        threshold: A similarity in (0, 1]. Below 0.04 more than that are missed also by bands of one value.
    """
    sizes = (size for size in range(NUM_HASHES, 0, -1) if NUM_HASHES % size == 0)
    return next((size for size in sizes if (1 - threshold**size) ** (NUM_HASHES // size) <= MOST_MISSED), 1)


@dataclass
class NearDuplicates:
    """The documents that were kept so far, found again by their bands."""

    threshold: float
    band_rows: int = field(init=False)
    """Values of a band. 0.8: 6, of which a pair at 0.8 has 20 and misses 0.2 %; 0.5: 3, 40, 0.5 %."""
    _signatures: list[Uint32s] = field(default_factory=list)
    _places: list[str] = field(default_factory=list)
    _bands: dict[tuple[int, bytes], list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.band_rows = rows_of_band(self.threshold)

    def find(self, signature: Uint32s, place: str) -> tuple[str, float] | None:
        """Return the place of the kept document that is most like this one, and how like it is; else keep this one."""
        keys = [
            (first, signature[first : first + self.band_rows].tobytes())
            for first in range(0, NUM_HASHES, self.band_rows)
        ]
        candidates = {number for key in keys for number in self._bands.get(key, ())}
        alike = {number: float(np.mean(self._signatures[number] == signature)) for number in candidates}
        nearest = max(sorted(alike), key=alike.__getitem__, default=None)
        if nearest is not None and alike[nearest] >= self.threshold:
            return self._places[nearest], alike[nearest]
        for key in keys:
            self._bands.setdefault(key, []).append(len(self._signatures))
        self._signatures.append(signature)
        self._places.append(place)
        return None
