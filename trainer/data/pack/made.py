"""Packs that are made while a run goes on, in the place of a split: pieces in memory, laid out as in a store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from trainer.data.pack.pack import as_rows, best_fit, positions_of_rows
from trainer.data.store.pack_arrays import digest_of_pack, targets_of
from trainer.data.store.store import SplitStore
from trainer.data.types import Bools, Int64s, Pack, Unit


class MadePiece(NamedTuple):
    """A document: its tokens, and which of them are learnt; both [n], n at most the length of a pack."""

    tokens: Int64s
    supervised: Bools


class MadeSplit(SplitStore):
    """A split that holds other documents than the one on disk: whole pieces, none cut."""

    def __init__(self, store: SplitStore, pieces: Sequence[MadePiece]) -> None:
        """Take the split whose place this is, which stays as it is, and what is packed."""
        assert store.unit is Unit.document and not store.values, "plain documents alone"
        vars(self).update(vars(store))
        lengths = np.array([len(piece.tokens) for piece in pieces], dtype=np.int32)
        layout = (as_rows if store.in_rows else best_fit)(lengths, store.seq_len)
        tokens = np.concatenate([np.empty(0, dtype=np.int64), *(piece.tokens for piece in pieces)])
        marks = np.concatenate([np.empty(0, dtype=np.bool_), *(piece.supervised for piece in pieces)])
        self._packs: list[Pack] = []
        for first, last in zip(
            layout.pack_offset[:-1].tolist(), layout.pack_offset[1:].tolist(), strict=True
        ):
            of_pack = layout.piece_len[first:last].tolist()
            starts = layout.piece_start[first:last].tolist()
            at = np.concatenate([np.arange(s, s + n) for s, n in zip(starts, of_pack, strict=True)])
            self._packs.append(Pack(tokens[at], marks[at], of_pack))
        self.num_packs = len(self._packs)
        self.pack_tokens = np.array([len(pack.tokens) for pack in self._packs], dtype=np.int32)
        self.pack_units = np.array([len(pack.lengths) for pack in self._packs], dtype=np.int32)
        self.pack_targets = np.array([targets_of(pack).sum() for pack in self._packs], dtype=np.int32)
        self.pack_chosen = np.zeros(self.num_packs, dtype=np.int32)
        self.pack_positions = np.full(self.num_packs, store.seq_len, dtype=np.int32)
        if store.in_rows:
            self.pack_positions = positions_of_rows(layout, store.seq_len)

    def pack(self, index: int) -> Pack:
        """Return a pack by its number."""
        return self._packs[index]

    def pack_digest(self, index: int) -> bytes:
        """Return the digest of what a pack holds."""
        pack = self._packs[index]
        return digest_of_pack(pack.tokens, pack.supervised, pack.lengths)


def pieces_of(pack: Pack) -> list[MadePiece]:
    """Return the pieces of a pack, each by itself."""
    ends = np.cumsum(pack.lengths)[:-1]
    parts = zip(np.split(pack.tokens, ends), np.split(pack.supervised, ends), strict=True)
    return [MadePiece(tokens, supervised) for tokens, supervised in parts]
