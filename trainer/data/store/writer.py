"""Writes token stores so that a store is there whole or not at all.

Everything is built beside its place and put there last (runtime/publish.py). The loser of a race between two
processes throws its own copy away.
"""

from __future__ import annotations

import errno
import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.config.data import LongDocuments, Packing
from trainer.data.pack.pack import Layout, best_fit, concat, cut_long, pack_targets
from trainer.data.store.spool import Spool
from trainer.data.store.store import (
    ARRAYS,
    DIGESTS,
    FORMAT_VERSION,
    HASHES,
    META,
    SUPERVISED,
    TOKENS,
    TRAIN,
    VALIDATION,
    digest_of_pack,
    map_array,
    open_store,
)
from trainer.data.types import Bools, Bytes
from trainer.errors import DataError
from trainer.runtime.seal import sealed_text

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class PackOptions:
    """How the documents of a store become packs."""

    seq_len: int
    packing: Packing
    long_documents: LongDocuments


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
        **meta,
        "vocab_size": vocab_size,
        "splits": splits,
        "arrays": arrays,
    }
    (folder / META).write_text(sealed_text(meta), encoding="utf-8")


def is_whole(store: Path) -> bool:
    """Tell whether a token store can be opened."""
    try:
        open_store(store)
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
    lengths = spool.lengths[wanted]
    num_tokens = int(lengths.sum(dtype=np.int64))
    dtype = np.dtype("<u2" if spool.max_id < 2**16 else "<u4")
    tokens, supervised = _write_tokens(folder, name, spool, wanted, dtype, arrays)
    if options.packing is Packing.concat:
        layout = concat(lengths, options.seq_len)
    else:
        if options.long_documents is LongDocuments.split:
            lengths = cut_long(lengths, options.seq_len)
        layout = best_fit(lengths, options.seq_len)
    targets = pack_targets(layout, supervised)
    values: list[npt.NDArray[Any]] = [
        layout.piece_start,
        layout.piece_len,
        layout.pack_offset,
        targets,
        np.sort(spool.hashes[wanted]),
    ]
    for file, value in zip((*ARRAYS, HASHES), values, strict=True):
        array = _ArrayFile(folder, f"{name}/{file}", arrays)
        array.write(_npy_header(value.dtype, len(value)))
        array.write(np.ascontiguousarray(value).data)
        array.close()
    _write_digests(_ArrayFile(folder, f"{name}/{DIGESTS}", arrays), layout, tokens, supervised)
    return {
        "seq_len": options.seq_len,
        "dtype": dtype.str,
        "num_documents": int(np.count_nonzero(wanted)),
        "num_pieces": len(layout.piece_len),
        "num_packs": layout.num_packs,
        "num_tokens": num_tokens,
        "num_supervised": num_tokens if supervised is None else int(np.count_nonzero(supervised)),
        "num_targets": int(targets.sum(dtype=np.int64)),
    }


def _write_tokens(
    folder: Path, name: str, spool: Spool, wanted: Bools, dtype: np.dtype[Any], arrays: dict[str, Any]
) -> tuple[npt.NDArray[Any], Bytes | None]:
    """Write the tokens of a split, and its marks unless every token is supervised; return both mapped."""
    all_supervised = spool.num_supervised == spool.num_tokens
    tokens = _ArrayFile(folder, f"{name}/{TOKENS}", arrays)
    marks = None if all_supervised else _ArrayFile(folder, f"{name}/{SUPERVISED}", arrays)
    for block in spool.read(wanted):
        tokens.write(block.tokens.astype(dtype).data)
        if marks:
            marks.write(block.supervised.data)
    tokens.close()
    if marks:
        marks.close()
    mapped = map_array(folder / name / TOKENS, dtype)
    return mapped, map_array(folder / name / SUPERVISED, np.dtype("u1")) if marks else None


def _write_digests(
    file: _ArrayFile, layout: Layout, tokens: npt.NDArray[Any], supervised: Bytes | None
) -> None:
    """Write the digest of every pack, of the bytes that were written."""
    for first, last in pairwise(layout.pack_offset.tolist()):
        lengths = layout.piece_len[first:last].tolist()
        parts = [
            slice(s, s + n) for s, n in zip(layout.piece_start[first:last].tolist(), lengths, strict=True)
        ]
        joined = np.concatenate([tokens[part] for part in parts]).astype(np.int64)
        marks: Bytes = np.ones(len(joined), dtype=np.uint8)
        if supervised is not None:
            marks = np.concatenate([supervised[part] for part in parts])
        file.write(digest_of_pack(joined, marks, lengths))
    file.close()


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
