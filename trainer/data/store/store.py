"""Reads token stores: memory-mapped documents of one source and the packs that point into them.

What points into a store is compared with its digests when it is opened, and every pack when it is read, so that no
flipped bit is trained on. Training imports this where `datasets` is not installed. Writing is in writer.py, finding in
prepared.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.pack.pack import Layout, chosen_positions, positions_of_rows
from trainer.data.store.pack_arrays import SUPERVISED, PackArrays, pack_value_file
from trainer.data.types import Float64s, Int32s, Int64s, Pack, Unit
from trainer.errors import DataError
from trainer.runtime.seal import DIGEST_BYTES, file_digest, read_sealed

FORMAT_VERSION = 4
META = "meta.json"
TRAIN = "train"
VALIDATION = "validation"
DIGESTS = "pack_digests.bin"
HASHES = "document_hashes.npy"
ARRAYS = ("piece_start.npy", "piece_len.npy", "pack_offset.npy", "pack_targets.npy")
UNIT_PIECES = "unit_pieces.npy"
"""Pieces of each unit in pack order, where a unit is not a document."""
PREFIXES = "piece_prefix.npy"
"""Tokens of its unit's first piece that each piece sees before its own, where prompts are shared."""
DOCUMENTS = "piece_document.npy"
"""Document of each piece in pack order, where held-out documents were cut."""


class SplitStore:
    """The packs of one split, read from disk as they are asked for."""

    def __init__(self, folder: Path, name: str, meta: dict[str, Any]) -> None:
        """Map the arrays of a split of the store with this meta.json.

        Raises:
            ValueError: What points into the tokens is not as it was written.
        """
        split = meta["splits"][name]
        self.seq_len = int(split["seq_len"])
        self.unit = Unit(meta["unit"])
        self.values: tuple[str, ...] = tuple(meta.get("values", ()))
        self.num_tokens = int(split["num_tokens"])
        self.num_documents = int(split["num_documents"])
        self.num_targets = int(split["num_targets"])
        self.num_shared = int(split.get("num_shared", 0))
        """Tokens of prompts that packs hold once in place of once an answer."""
        self._folder, self._name, self._files = folder, name, meta["arrays"]
        start, length, offset, targets = map(self._load, ARRAYS)
        units = None if self.unit is Unit.document else self._load(UNIT_PIECES)
        prefixes = self._load(PREFIXES) if f"{name}/{PREFIXES}" in self._files else None
        self._documents: Int64s | None = None
        if name == VALIDATION and self.unit is Unit.document and len(length) > self.num_documents:
            self._documents = self._load(DOCUMENTS)
        # Small beside the tokens, and read at random: held in memory.
        self._arrays = PackArrays(
            folder / name,
            np.dtype(split["dtype"]),
            f"{name}/{SUPERVISED}" in self._files,
            self.values,
            Layout(start, length, offset, units, prefixes),
        )
        self.pack_targets: Int32s = targets
        self.num_packs = len(targets)
        self._pack_digests = np.fromfile(self._checked(DIGESTS), dtype=np.uint8).reshape(-1, DIGEST_BYTES)
        ends = np.concatenate([[0], np.cumsum(length, dtype=np.int64)])
        self.pack_tokens: Int32s = np.diff(ends[offset]).astype(np.int32)
        self.in_rows = bool(split.get("in_rows", False))
        """Every piece of a pack is a row of its own."""
        self.pack_positions: Int32s = np.full(self.num_packs, self.seq_len, dtype=np.int32)
        """Positions that a model computes of each pack, padding among them."""
        if self.in_rows:
            self.pack_positions = positions_of_rows(self._arrays.layout, self.seq_len)
        self.pack_units: Int32s = np.diff(self._arrays.unit_offset).astype(np.int32)
        """Units of each pack; of a cut document each part is one."""
        self.pack_chosen: Int32s = chosen_positions(self._arrays.layout, self.unit)
        """Tokens of each pack that are predicted in chosen answers and their prompts; none where units are no pairs."""
        self.pack_value_sums: dict[str, Float64s] = {
            value: self._load(pack_value_file(value)) for value in self.values
        }
        """Sums of each number of tokens over the supervised targets of each pack."""

    def _load(self, array: str) -> npt.NDArray[Any]:
        found: npt.NDArray[Any] = np.load(self._checked(array), allow_pickle=False)
        return found

    def _checked(self, array: str) -> Path:
        """Return the place of an array of the split after comparing it with its digest."""
        file = self._folder / self._name / array
        if f"{self._name}/{array}" not in self._files:
            raise ValueError(f"{self._name}/{array} is missing")
        if file_digest(file) != self._files[f"{self._name}/{array}"]["sha256"]:
            raise ValueError(f"{self._name}/{array} is not as it was written")
        return file

    @property
    def num_pieces(self) -> int:
        """Number of isolated pieces in all packs."""
        return len(self._arrays.layout.piece_len)

    def document_hashes(self) -> npt.NDArray[np.uint64]:
        """Read the sorted content hashes of the split's documents.

        Raises:
            DataError: They are not as they were written.
        """
        try:
            hashes: npt.NDArray[np.uint64] = self._load(HASHES)
        except (OSError, ValueError) as error:
            raise damaged_store(self._folder, str(error)) from error
        return hashes

    def pack_digest(self, index: int) -> bytes:
        """Return the digest of what a pack holds, the same in every store that holds it."""
        return bytes(self._pack_digests[index])

    def pack(self, index: int) -> Pack:
        """Return a pack by its number in [0, num_packs).

        Raises:
            IndexError: If there is no such pack.
            DataError: If its bytes are not those that were written.
        """
        if not 0 <= index < self.num_packs:
            raise IndexError(f"pack {index} of {self.num_packs}")
        pack, digest = self._arrays.read(index)
        if digest != self.pack_digest(index):
            where = " or ".join(f"{self._name}/{file}" for file in self._arrays.files)
            raise damaged_store(self._folder, f"pack {index} in {where} is not as it was written")
        return pack

    def documents_of(self, index: int) -> Int64s:
        """Return a number for each piece of a pack, the same for parts of one document (held-out ones), int64 [pieces].

        Where several pieces are a unit, it is the unit's.
        """
        layout = self._arrays.layout
        first, last = layout.pack_offset[index : index + 2].tolist()
        if self._documents is not None:
            return self._documents[first:last]
        if layout.unit_pieces is None:
            return np.arange(first, last)
        units = slice(*self._arrays.unit_offset[index : index + 2].tolist())
        return np.repeat(np.arange(units.start, units.stop), layout.unit_pieces[units])

    def piece_at(self, start: int) -> int | None:
        """Return the piece that begins behind so many tokens of the split in document order; None if none does."""
        found = np.flatnonzero(self._arrays.layout.piece_start == start)
        return int(found[0]) if len(found) else None

    def piece(self, index: int) -> Pack:
        """Return one isolated piece as a pack of its own, with the prompt where it shares one; reports show these.

        Raises:
            DataError: If the bytes of its pack are not those that were written.
        """
        pack_offset = self._arrays.layout.pack_offset
        number = int(np.searchsorted(pack_offset, index, side="right")) - 1
        pack = self.pack(number)
        inside = index - int(pack_offset[number])
        units, starts = self.documents_of(number), np.cumsum([0, *pack.lengths])
        seen = 0 if pack.prefixes is None else pack.prefixes[inside]
        first = int(starts[int((units == units[inside]).argmax())])
        own = np.arange(starts[inside], starts[inside + 1])
        at = np.concatenate([np.arange(first, first + seen), own])
        values = {name: numbers[at] for name, numbers in pack.values.items()}
        return Pack(pack.tokens[at], pack.supervised[at], [len(at)], None, values)


def origin_digest(origin: Any) -> str:
    """Return what names what a store was made of; it has a line a file otherwise."""
    return hashlib.sha256(json.dumps(origin).encode()).hexdigest()


@dataclass(slots=True)
class Store:
    """One source, tokenised and packed. Its digest names everything that shaped it."""

    digest: str
    meta: dict[str, Any]
    train: SplitStore
    validation: SplitStore

    @property
    def described(self) -> dict[str, Any]:
        """Return what shaped the store and its digest, as a run records it."""
        shaped: dict[str, Any] = self.meta["descriptor"]
        return {
            "store": self.digest,
            "origin": origin_digest(shaped["origin"]),
            "options": shaped["options"],
        }


def open_store(path: Path, unit: Unit = Unit.document) -> Store:
    """Open a store and check that it is whole: its version, and the size of every array.

    The bytes of what is small are compared with their digests here, those of tokens and marks pack by pack.

    Args:
        unit: What its packs have to keep whole.
    Raises:
        DataError: If it is not there, of another version, damaged, or holds other units.
    """
    try:
        meta = read_sealed(path / META)
        version, digest = meta["version"], meta["digest"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged_store(path, f"has no readable {META}: {error}") from error
    if version != FORMAT_VERSION:
        raise DataError(
            f"The token store {path} must be of version {FORMAT_VERSION}, but is of version {version} "
            "instead. Run `palimpsest prepare` again."
        )
    if meta.get("unit") != unit.value:
        raise DataError(
            f"The token store {path} must keep units of the kind {unit.value} whole, but keeps those of the kind "
            f"{meta.get('unit')} instead. Run `palimpsest prepare` again."
        )
    if digest != path.name:
        raise damaged_store(path, f"it holds the store {str(digest)[:12]}")
    try:
        for name, array in meta["arrays"].items():
            file = path / name
            size = file.stat().st_size if file.exists() else -1
            if size != array["bytes"]:
                raise damaged_store(path, f"{name} has {size} bytes instead of {array['bytes']}")
        train, validation = (SplitStore(path, name, meta) for name in (TRAIN, VALIDATION))
        return Store(digest, meta, train, validation)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged_store(path, str(error)) from error


def damaged_store(path: Path, reason: str) -> DataError:
    """Return the sentence about a store that must not be used."""
    return DataError(
        f"The token store {path} must be whole, but {reason}. Delete that folder and run "
        "`palimpsest prepare` again."
    )


def check_vocabulary(name: str, store: Store, num_rows: int) -> None:
    """Raise where a store holds ids that a model with so many rows of embeddings cannot read.

    Raises:
        DataError: It was made with another tokenizer.
    """
    needed = int(store.meta["vocab_size"])
    if needed > num_rows:
        raise DataError(
            f"`data.sources.{name}` must have token ids below the model's vocabulary of {num_rows}, "
            f"but has the id {needed - 1} instead. Use the model's own tokenizer, or resize the "
            "model's embeddings."
        )


def data_digest(stores: Mapping[str, Store]) -> str:
    """Return what names the data of a run: the digest of every source's store, as JSON."""
    return json.dumps({name: store.digest for name, store in stores.items()}, sort_keys=True)
