"""Units of several pieces made on the spot, which no format makes yet, and stores of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainer.config.data import LongDocuments, Packing
from trainer.data.store.held_back import choose_validation
from trainer.data.store.intake import Intake
from trainer.data.store.spool import Spool
from trainer.data.store.writer import PackOptions, write_store
from trainer.data.types import EncodedBatch, Unit
from trainer.runtime.publish import publish_folder


def options_of(unit: Unit, seq_len: int = 64) -> PackOptions:
    """Return options for units of a kind."""
    return PackOptions(seq_len, Packing.best_fit, LongDocuments.error, unit)


def batch_of(units: list[list[int]], seed: int = 0, values: Sequence[str] = ()) -> EncodedBatch:
    """Return a batch of units, given as the lengths of their pieces; piece k of all holds only the token k + 1.

    Every piece has a number of its own for each name of `values`, of all its tokens.
    """
    lengths = np.array([length for unit in units for length in unit], dtype=np.int32)
    num_tokens = int(lengths.sum())
    rng = np.random.default_rng(seed)
    return EncodedBatch(
        tokens=np.repeat(np.arange(1, len(lengths) + 1), lengths).astype(np.uint32),
        supervised=(rng.random(num_tokens) < 0.6).astype(np.uint8),
        lengths=lengths,
        unit_pieces=np.array([len(unit) for unit in units], dtype=np.int32),
        digests=[hashlib.sha256(f"{seed}-{i}".encode()).digest()[:16] for i in range(len(units))],
        places=[f"unit {i}" for i in range(len(units))],
        values={
            name: np.repeat(rng.normal(size=len(lengths)), lengths).astype(np.float32) for name in values
        },
    )


def random_units(num_units: int, num_pieces: int, seq_len: int, seed: int) -> list[list[int]]:
    """Return lengths of pieces of units that fit in a pack."""
    rng = np.random.default_rng(seed)
    most = seq_len // num_pieces
    return [rng.integers(1, most + 1, num_pieces).tolist() for _ in range(num_units)]


NAME = "0" * 64
"""Of every store that is made here."""


def write_units(
    stores: Path, batches: Iterable[EncodedBatch], options: PackOptions, values: Sequence[str] = ()
) -> Path:
    """Write a store of units as `prepare` writes one of documents, and return its folder."""

    def fill(folder: Path) -> None:
        spool = Spool(folder, values)
        intake = Intake("s", spool, options, False, None)
        for batch in batches:
            intake.counts["rows"] += len(batch.unit_pieces)
            intake.take(batch)
        intake.check()
        meta: dict[str, Any] = {"digest": NAME, "counts": dict(intake.counts), "longest": intake.longest}
        write_store(folder, spool, choose_validation(spool.hashes, 0.2), options, meta)
        spool.delete()

    publish_folder(stores / NAME, fill)
    return stores / NAME
