"""The flat arrays of a split and the packs that a layout cuts out of them; compares nothing with its digest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.pack.pack import Layout
from trainer.data.types import Bools, Bytes, Float32s, Int64s, Pack
from trainer.runtime.seal import part_digest

TOKENS = "tokens.bin"
SUPERVISED = "supervised.bin"


def value_file(name: str) -> str:
    """Return the file of a number that every token has, float32."""
    return f"value.{name}.bin"


def pack_value_file(name: str) -> str:
    """Return the file of the sums of a number over the supervised targets of each pack, float64."""
    return f"pack_value.{name}.npy"


class PackArrays:
    """The arrays of one split, mapped."""

    def __init__(
        self, folder: Path, dtype: np.dtype[Any], has_marks: bool, values: Sequence[str], layout: Layout
    ) -> None:
        """Map them; without marks every token is supervised."""
        self.files = [TOKENS, *([SUPERVISED] if has_marks else []), *map(value_file, values)]
        self._tokens = map_array(folder / TOKENS, dtype)
        self.marks: Bytes | None = map_array(folder / SUPERVISED, np.dtype("u1")) if has_marks else None
        self._values = {name: map_array(folder / value_file(name), np.dtype("<f4")) for name in values}
        self.layout = layout
        self.unit_offset: Int64s = layout.unit_offset()

    def read(self, index: int) -> tuple[Pack, bytes]:
        """Return a pack by its number, and the digest of its bytes."""
        first, last = self.layout.pack_offset[index : index + 2].tolist()
        lengths = self.layout.piece_len[first:last].tolist()
        starts = self.layout.piece_start[first:last].tolist()
        ranges = [slice(s, s + n) for s, n in zip(starts, lengths, strict=True)]
        tokens = np.concatenate([self._tokens[r] for r in ranges]).astype(np.int64)
        marks: Bytes = np.ones(len(tokens), dtype=np.uint8)
        if self.marks is not None:
            marks = np.concatenate([self.marks[r] for r in ranges])
        units = prefixes = None
        if self.layout.unit_pieces is not None:
            units = self.layout.unit_pieces[slice(*self.unit_offset[index : index + 2])].tolist()
        values = {name: np.concatenate([column[r] for r in ranges]) for name, column in self._values.items()}
        if self.layout.piece_prefix is not None:
            prefixes = self.layout.piece_prefix[first:last].tolist()
        digest = digest_of_pack(tokens, marks, lengths, units, values, prefixes)
        return Pack(tokens, marks.astype(np.bool_), lengths, units, values, prefixes), digest


def digest_of_pack(
    tokens: Int64s,
    marks: Bytes | Bools,
    lengths: list[int],
    unit_pieces: list[int] | None = None,
    values: dict[str, Float32s] | None = None,
    prefixes: list[int] | None = None,
) -> bytes:
    """Return the digest of what a model learns from a pack: its fields in their order."""
    pieces = np.array([len(lengths), *lengths], dtype="<i4")
    parts = [pieces.data, tokens.astype("<u4").data, marks.astype(np.uint8).data]
    if unit_pieces is not None:
        parts.append(np.array([len(unit_pieces), *unit_pieces], dtype="<i4").data)
    for name, numbers in sorted((values or {}).items()):
        parts += [memoryview(f"{name}\0".encode()), np.ascontiguousarray(numbers, dtype="<f4").data]
    if prefixes is not None:
        parts += [memoryview(b"prefixes\0"), np.array(prefixes, dtype="<i4").data]
    return part_digest(*parts)


def targets_of(pack: Pack) -> Bools:
    """Mark the supervised tokens of a pack that something stands before: those that are not first of a piece."""
    targets = pack.supervised.copy()
    targets[np.cumsum([0, *pack.lengths[:-1]])] = False
    return targets


def sum_values(pack: Pack) -> dict[str, float]:
    """Sum each number of a pack over its targets; rounded once."""
    targets = targets_of(pack)
    return {name: math.fsum(numbers[targets].tolist()) for name, numbers in pack.values.items()}


def map_array(file: Path, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Map a file without a header."""
    if file.stat().st_size == 0:  # an empty file cannot be mapped
        return np.empty(0, dtype=dtype)
    return np.memmap(file, dtype=dtype, mode="r")
