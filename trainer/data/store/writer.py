"""Writes token stores so that a store is there whole or not at all.

Everything is built beside its place and put there last (runtime/publish.py). The loser of a race between two
processes throws its own copy away.
"""

from __future__ import annotations

import errno
import hashlib
import io
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.config.data import LongDocuments, Packing
from trainer.data.pack.pack import Layout, as_rows, best_fit, concat, cut_long, pack_targets
from trainer.data.store.pack_arrays import (
    SUPERVISED,
    TOKENS,
    PackArrays,
    pack_value_file,
    sum_values,
    value_file,
)
from trainer.data.store.spool import Spool
from trainer.data.store.store import (
    ARRAYS,
    DIGESTS,
    DOCUMENTS,
    FORMAT_VERSION,
    HASHES,
    META,
    PREFIXES,
    TRAIN,
    UNIT_PIECES,
    VALIDATION,
    open_store,
)
from trainer.data.types import Bools, Int32s, Unit
from trainer.errors import DataError
from trainer.runtime.seal import sealed_text

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class PackOptions:
    """How the units of a store become packs."""

    seq_len: int
    packing: Packing
    long_documents: LongDocuments
    unit: Unit = Unit.document
    """Only documents are ever cut; other units are packed by best fit."""
    in_rows: bool = False
    """Every document is to be a row of its own; `packing` says nothing then."""
    shares_prompts: bool = False
    """A pack holds the prompt of a unit once, in its first piece."""

    def lay_out(self, lengths: Int32s, unit_pieces: Int32s, prefixes: Int32s | None = None) -> Layout:
        """Return where pieces of these lengths go, less what each shares of the first of its unit."""
        if self.unit is not Unit.document:
            assert not self.in_rows, "rows are laid out for documents only"
            return best_fit(lengths, self.seq_len, unit_pieces, prefixes)
        assert len(lengths) == len(unit_pieces), "a document is one piece"
        if self.is_stream:
            return concat(lengths, self.seq_len)
        if self.long_documents is LongDocuments.split:
            lengths = cut_long(lengths, self.seq_len)
        return as_rows(lengths, self.seq_len) if self.in_rows else best_fit(lengths, self.seq_len)

    @property
    def is_stream(self) -> bool:
        """Tell whether documents are cut where a pack ends, whatever their length."""
        return self.packing is Packing.concat and not self.in_rows


@contextmanager
def cache_explained(cache_dir: str, what: str = "the token store") -> Iterator[None]:
    """Turn errors of the file system into a sentence.

    Args:
        what: What is built, for messages.
    Raises:
        DataError: If the disk is full or the folder cannot be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL_DISK:
            raise DataError(
                f"`data.cache_dir` must have room for {what}, but the disk of "
                f"'{cache_dir}' is full. Free some space or set data.cache_dir to another disk."
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EPERM):
            raise DataError(
                f"`data.cache_dir` must be a folder that can be written, but is '{cache_dir}' "
                f"instead: {error.strerror}. Set data.cache_dir to another folder."
            ) from error
        raise


def write_store(
    folder: Path,
    spool: Spool,
    held_out: Bools,
    options: PackOptions,
    meta: dict[str, Any],
) -> None:
    """Write both splits of a spool and the meta file into a staging folder."""
    arrays: dict[str, Any] = {}
    splits: dict[str, Any] = {}
    for name, wanted in ((TRAIN, ~held_out), (VALIDATION, held_out)):
        (folder / name).mkdir()
        splits[name] = _write_split(folder, name, spool, wanted, options, arrays)
    vocab_size = spool.max_id + 1
    meta = {
        "version": FORMAT_VERSION,
        "unit": options.unit.value,
        **({"values": list(spool.values)} if spool.values else {}),
        **meta,
        "vocab_size": vocab_size,
        "splits": splits,
        "arrays": arrays,
    }
    (folder / META).write_text(sealed_text(meta), encoding="utf-8")


def is_whole(store: Path, unit: Unit = Unit.document) -> bool:
    """Tell whether a token store of a kind of unit can be opened."""
    try:
        open_store(store, unit)
    except DataError:
        return False
    return True


def _write_split(
    folder: Path,
    name: str,
    spool: Spool,
    wanted: Bools,
    options: PackOptions,
    arrays: dict[str, Any],
) -> dict[str, Any]:
    unit_pieces = spool.unit_pieces
    wanted_pieces = np.repeat(wanted, unit_pieces)
    lengths = spool.lengths[wanted_pieces]
    prefixes = spool.prefixes[wanted_pieces] if options.shares_prompts else None
    dtype = np.dtype("<u2" if spool.max_id < 2**16 else "<u4")
    has_marks = spool.num_supervised < spool.num_tokens
    _write_tokens(folder, name, spool, wanted, dtype, arrays)
    layout = options.lay_out(lengths, unit_pieces[wanted], prefixes)
    num_tokens = int(layout.piece_len.sum(dtype=np.int64))
    packs = PackArrays(folder / name, dtype, has_marks, spool.values, layout)
    targets = pack_targets(layout, packs.marks)
    found = (layout.piece_start, layout.piece_len, layout.pack_offset, targets)
    small: dict[str, npt.NDArray[Any]] = dict(zip(ARRAYS, found, strict=True))
    small[HASHES] = np.sort(spool.hashes[wanted])
    if layout.unit_pieces is not None:
        small[UNIT_PIECES] = layout.unit_pieces
        if layout.piece_prefix is not None:
            small[PREFIXES] = layout.piece_prefix
    elif name == VALIDATION and len(layout.piece_len) > len(lengths):
        starts = np.cumsum(lengths, dtype=np.int64) - lengths
        small[DOCUMENTS] = np.searchsorted(starts, layout.piece_start, side="right") - 1
    sums = _write_digests(_ArrayFile(folder, f"{name}/{DIGESTS}", arrays), packs)
    small |= {pack_value_file(value): np.array(sums[value], dtype=np.float64) for value in spool.values}
    for file, value in small.items():
        array = _ArrayFile(folder, f"{name}/{file}", arrays)
        array.write(_npy_header(value.dtype, len(value)))
        array.write(np.ascontiguousarray(value).data)
        array.close()
    return {
        "seq_len": options.seq_len,
        **({"in_rows": True} if options.in_rows else {}),
        "dtype": dtype.str,
        "num_documents": int(np.count_nonzero(wanted)),
        "num_pieces": len(layout.piece_len),
        "num_packs": layout.num_packs,
        "num_tokens": num_tokens,
        **({} if prefixes is None else {"num_shared": int(prefixes.sum(dtype=np.int64))}),
        "num_supervised": num_tokens if packs.marks is None else int(np.count_nonzero(packs.marks)),
        "num_targets": int(targets.sum(dtype=np.int64)),
    }


def _write_tokens(
    folder: Path, name: str, spool: Spool, wanted: Bools, dtype: np.dtype[Any], arrays: dict[str, Any]
) -> None:
    """Write the tokens of a split and their numbers, and their marks unless every token is supervised."""
    kinds = {TOKENS: dtype, SUPERVISED: np.dtype("u1")} | {
        value_file(value): np.dtype("<f4") for value in spool.values
    }
    if spool.num_supervised == spool.num_tokens:
        del kinds[SUPERVISED]
    files = {file: _ArrayFile(folder, f"{name}/{file}", arrays) for file in kinds}
    for block in spool.read(wanted):
        columns: dict[str, npt.NDArray[Any]] = {TOKENS: block.tokens, SUPERVISED: block.supervised}
        columns |= {value_file(value): numbers for value, numbers in block.values.items()}
        for file, array in files.items():
            array.write(columns[file].astype(kinds[file], copy=False).data)
    for array in files.values():
        array.close()


def _write_digests(file: _ArrayFile, packs: PackArrays) -> dict[str, list[float]]:
    """Write the digest of every pack, of the bytes that were written; return the sums of their numbers."""
    sums: dict[str, list[float]] = defaultdict(list)
    for index in range(packs.layout.num_packs):
        pack, digest = packs.read(index)
        file.write(digest)
        for name, number in sum_values(pack).items():
            sums[name].append(number)
    file.close()
    return sums


class _ArrayFile:
    """A file that is hashed and counted while it is written."""

    def __init__(self, folder: Path, name: str, arrays: dict[str, Any]) -> None:
        self._stream = (folder / name).open("wb")
        self._name = name
        self._arrays = arrays
        self._digest = hashlib.sha256()
        self._num_bytes = 0

    def write(self, data: bytes | memoryview) -> None:
        if len(data) == 0:
            return
        self._digest.update(data)
        self._stream.write(data)
        self._num_bytes += data.nbytes if isinstance(data, memoryview) else len(data)

    def close(self) -> None:
        self._stream.close()
        self._arrays[self._name] = {"bytes": self._num_bytes, "sha256": self._digest.hexdigest()}


def _npy_header(dtype: npt.DTypeLike, length: int) -> bytes:
    # np.save would write the data through a C stream, whose errors have no errno.
    buffer = io.BytesIO()
    header = np.lib.format.header_data_from_array_1_0(np.empty(0, dtype=dtype))
    np.lib.format.write_array_header_1_0(buffer, {**header, "shape": (length,)})
    return buffer.getvalue()
