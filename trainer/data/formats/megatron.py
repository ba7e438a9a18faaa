"""Reads the token ids that Megatron-LM's preprocessing wrote: a .bin of ids, and an .idx that says where each begins.

Source: megatron/core/datasets/indexed_dataset.py (MMIDIDX) and deepspeed/runtime/data_pipeline/data_sampling/
indexed_dataset.py (MMIDIDX and the older TNTIDX), both version 1. All numbers are little-endian.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.types import Int64s
from trainer.errors import DataError

MAPPED = b"MMIDIDX\x00\x00"
LEGACY = b"TNTIDX\x00\x00"
DTYPES: dict[int, tuple[str, ...]] = {
    1: ("u1",),
    2: ("i1",),
    3: ("<i2",),
    4: ("<i4",),
    5: ("<i8",),
    6: ("<u2",),
    8: ("<u2", "<u8"),
}
"""Codes of integers. Writers disagree about 6 to 8, so of those the size of the .bin decides."""
DISPUTED = (6, 8)
FLOATS = "float32 or float64"


@dataclass(slots=True)
class _Index:
    """Where sequences lie in the .bin, in tokens, and which of them begin a document.

    Shapes:
        starts, lengths: int64 [sequences]; bounds: int64 [documents + 1], from 0 to the number of sequences.
    """

    dtype: npt.DTypeLike
    starts: Int64s
    lengths: Int64s
    bounds: Int64s


class MegatronFile:
    """A .bin whose index was read and compared with its size.

    Raises:
        DataError: If the index is damaged, of another version, of no integers, multimodal, or of another .bin.
    """

    columns = ("input_ids",)

    def __init__(self, file: Path) -> None:
        self.file = file
        self.notes: Counter[str] = Counter()
        """What was noticed, and how often; complete when the rows were read."""
        self._place = file.with_suffix(".idx")
        self._index = self._read_index()

    def read(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Read the documents, each with its number; sequences of one document are joined.

        Raises:
            DataError: If an id is negative.
        """
        index = self._index
        num_tokens = int(index.lengths.sum())
        tokens = np.memmap(self.file, index.dtype, "r") if num_tokens else np.empty(0, index.dtype)
        ends: Counter[int] = Counter()
        left = len(tokens) - num_tokens
        if left > 0:
            self.notes["token of the .bin in no sequence of the index, not read"] += left
        for number, (first, last) in enumerate(
            zip(index.bounds[:-1].tolist(), index.bounds[1:].tolist(), strict=True), 1
        ):
            self.notes["document of several sequences, joined"] += last - first > 1
            starts, lengths = index.starts[first:last].tolist(), index.lengths[first:last].tolist()
            parts = [tokens[start : start + length] for start, length in zip(starts, lengths, strict=True)]
            ids: list[int] = [token for part in parts for token in part.tolist()]
            if tokens.dtype.kind == "i" and min(ids, default=0) < 0:
                raise DataError(
                    f"{self.file}, document {number} must hold token ids of 0 or more, but holds {min(ids)} instead. "
                    "Preprocess it anew."
                )
            ends.update(ids[-1:])
            yield number, {"input_ids": ids}
        for end, count in ends.most_common(1):
            self.notes[f"document that ends with the token {end}, the commonest end"] = count

    def _read_index(self) -> _Index:
        raw = self._place.read_bytes()
        try:
            if raw.startswith(MAPPED):
                index = self._mapped(raw)
            elif raw.startswith(LEGACY):
                index = self._legacy(raw)
            else:
                raise self._wrong(
                    f"it must begin with {MAPPED[:7]!r} or {LEGACY[:6]!r}, but begins with {raw[:9]!r} instead"
                )
        except ValueError as error:
            raise self._wrong(f"it ends early, after {len(raw):,} bytes") from error
        self._check(index)
        return index

    def _mapped(self, raw: bytes) -> _Index:
        version, code = _number(raw, 9, "<u8"), _number(raw, 17, "u1")
        num_sequences = _number(raw, 18, "<u8")
        num_bounds = _number(raw, 26, "<u8")
        self._check_version(version)
        end = 34 + 12 * num_sequences + 8 * num_bounds
        if len(raw) == end + num_sequences and num_sequences:
            raise self._wrong("it has a mode for every sequence, as multimodal data has, which is not read")
        self._check_bytes(len(raw), end)
        lengths = np.frombuffer(raw, "<i4", num_sequences, 34).astype(np.int64)
        pointers = np.frombuffer(raw, "<i8", num_sequences, 34 + 4 * num_sequences)
        bounds = np.frombuffer(raw, "<i8", num_bounds, 34 + 12 * num_sequences)
        dtype = self._dtype(code, int(lengths.sum()))
        size = np.dtype(dtype).itemsize
        if (pointers % size).any():
            raise self._wrong(f"its sequences do not begin at whole tokens of {size} bytes")
        return _Index(dtype, pointers // size, lengths, bounds)

    def _legacy(self, raw: bytes) -> _Index:
        version, code, _, num_sequences, num_sizes, num_bounds = (
            _number(raw, 8 + 8 * place, "<u8") for place in range(6)
        )
        self._check_version(version)
        num_longs = 2 * (num_sequences + 1) + num_sizes + num_bounds
        self._check_bytes(len(raw), 56 + 8 * num_longs)
        longs = np.frombuffer(raw, "<i8", num_longs, 56)
        dims, starts, lengths, bounds = np.split(
            longs, np.cumsum([num_sequences + 1, num_sequences + 1, num_sizes])
        )
        if not np.array_equal(dims, np.arange(num_sequences + 1)):
            raise self._wrong("its items have another number of dimensions than one")
        return _Index(self._dtype(code, int(lengths.sum())), starts[:-1], lengths, bounds)

    def _check_bytes(self, num_bytes: int, told: int) -> None:
        if num_bytes != told:
            raise self._wrong(f"it has {num_bytes:,} bytes instead of the {told:,} that its counts tell")

    def _check_version(self, version: int) -> None:
        if version != 1:
            raise self._wrong(f"it is of version {version}, and version 1 is read")

    def _dtype(self, code: int, num_tokens: int) -> npt.DTypeLike:
        num_bytes = self.file.stat().st_size
        found = DTYPES.get(code)
        if found is None:
            raise self._wrong(
                f"its dtype has the code {code}, and integers have one of {', '.join(map(str, DTYPES))}"
                + (f" ({FLOATS} are no token ids)" if code == 7 else "")
            )
        fitting = [dtype for dtype in found if num_bytes == num_tokens * np.dtype(dtype).itemsize]
        if not fitting and code == 6 and num_bytes == 8 * num_tokens:
            raise self._wrong(f"its ids are numbers of 8 bytes under the code 6: {FLOATS} are no token ids")
        if not fitting and code in DISPUTED:
            raise self._wrong(
                f"its dtype has the code {code}, which writers use for different types, and {num_bytes:,} bytes for "
                f"{num_tokens:,} tokens fit none of their integers"
            )
        if not fitting and num_bytes < num_tokens * np.dtype(found[0]).itemsize:
            raise DataError(
                f"{self.file} must hold the {num_tokens:,} tokens of its index, but has {num_bytes:,} bytes "
                f"instead, too few for {np.dtype(found[0]).name}. Copy both files whole."
            )
        return fitting[0] if fitting else found[0]

    def _check(self, index: _Index) -> None:
        """Refuse an index that points outside of the .bin, or whose documents are no runs of its sequences."""
        num_held = self.file.stat().st_size // np.dtype(index.dtype).itemsize
        ends = index.starts + index.lengths
        if len(ends) and (index.lengths.min() < 0 or index.starts.min() < 0 or ends.max() > num_held):
            raise self._wrong(f"it points outside of the {num_held:,} tokens of '{self.file.name}'")
        bounds = index.bounds
        is_run = (
            len(bounds) > 0 and bounds[0] == 0 and bounds[-1] == len(ends) and (np.diff(bounds) >= 0).all()
        )
        if not is_run:
            raise self._wrong(
                f"its documents do not cover its {len(ends):,} sequences one after the other, which happens where a "
                "writer was stopped"
            )

    def _wrong(self, reason: str) -> DataError:
        return DataError(
            f"{self._place} must be an index of Megatron's that can be read, but {reason}. Preprocess the data "
            "anew, or name the files that it was made of."
        )


def _number(raw: bytes, offset: int, kind: str) -> int:
    return int(np.frombuffer(raw, kind, 1, offset)[0])
