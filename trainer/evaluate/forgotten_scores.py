"""Which held-out documents lost most, and the tuned model's losses of their tokens. Collective: every rank."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.store.store import SplitStore
from trainer.data.types import Pack
from trainer.engine.policy import Policy
from trainer.evaluate.forgotten import (
    Decode,
    ForgottenDocument,
    HeldOutPiece,
    Rise,
    counted_pieces,
    most_lost,
    rises,
    show,
)
from trainer.evaluate.held_out import HeldOut, PieceLosses, TokenLosses, held_out_losses


@dataclass(frozen=True, slots=True)
class MeasuredSets:
    """Held-out sets that both models scored."""

    held_out: HeldOut
    base: Mapping[str, PieceLosses]
    base_tokens: TokenLosses
    tuned: Mapping[str, PieceLosses]
    named: Callable[[str, int], tuple[str, int]] = lambda name, document: (name, document)
    """How a set is called that a document is shown of, and its number there."""


class ChosenPacks:
    """Some packs of a split, as held-out losses are taken of a whole one."""

    def __init__(self, store: SplitStore, packs: Sequence[int]) -> None:
        self._store, self._packs = store, packs
        self.seq_len, self.unit, self.num_packs = store.seq_len, store.unit, len(packs)

    def pack(self, index: int) -> Pack:
        """Return a pack by its place among the chosen ones."""
        return self._store.pack(self._packs[index])


@dataclass(frozen=True, slots=True)
class _Found:
    """A document that is shown and the piece that is shown of it."""

    measured: int
    name: str
    rise: Rise
    piece: HeldOutPiece


def forgotten_documents(
    policy: Policy, measured: Sequence[MeasuredSets], num: int, decode: Decode
) -> list[ForgottenDocument]:
    """Return the `num` documents of all sets that lost most, the most first. Collective; rank 0 has them.

    The tuned model reads no more than the packs that they stand in once more.
    """
    if not num:
        return []
    found: list[_Found] = policy.mesh.from_first(lambda: _choose(measured, num))
    tuned = [
        _scored(
            policy, sets.held_out, [(one.name, one.piece.pack) for one in found if one.measured == number]
        )
        for number, sets in enumerate(measured)
    ]
    if not policy.mesh.is_first:
        return []
    shown = []
    for one in found:
        sets, key = measured[one.measured], (one.name, one.piece.pack)
        pack = _store(sets.held_out, one.name).pack(one.piece.pack)
        document = show(one.rise, one.piece, pack, sets.base_tokens[key], tuned[one.measured][key], decode)
        name, number = sets.named(one.name, one.rise.document)
        shown.append(dataclasses.replace(document, set=name, document=number))
    return shown


def _choose(measured: Sequence[MeasuredSets], num: int) -> list[_Found]:
    """Return the documents that lost most, each with the piece that lost most."""
    pieces: dict[tuple[int, str], list[HeldOutPiece]] = {}
    found: list[tuple[int, Rise]] = []
    for number, sets in enumerate(measured):
        for name, losses in sets.base.items():
            if name not in sets.tuned or name not in sets.held_out.names:
                continue
            split, most = _store(sets.held_out, name), sets.held_out.max_packs
            laid = pieces[number, name] = [piece for piece, _ in counted_pieces(split, most)]
            documents_P = np.array([piece.document for piece in laid], dtype=np.int64)
            found += [(number, one) for one in rises(name, documents_P, losses, sets.tuned[name])]
    ranked = most_lost([one for _, one in found], num)
    numbers = {id(one): number for number, one in found}
    chosen = []
    for rise in ranked:
        number = numbers[id(rise)]
        sets = measured[number]
        base, tuned = sets.base[rise.set], sets.tuned[rise.set]
        own = [
            (float(tuned.nll_P[place] - base.nll_P[place]), piece)
            for place, piece in enumerate(pieces[number, rise.set])
            if piece.document == rise.document
        ]
        chosen.append(_Found(number, rise.set, rise, max(own, key=lambda one: one[0])[1]))
    return chosen


def _scored(
    policy: Policy, held_out: HeldOut, wanted: Sequence[tuple[str, int]]
) -> dict[tuple[str, int], npt.NDArray[Any]]:
    """Return the model's losses by position of some packs. Collective: every rank."""
    packs = {
        name: sorted({pack for of, pack in wanted if of == name})
        for name in dict.fromkeys(of for of, _ in wanted)
    }
    if not packs:
        return {}
    stores: list[Any] = [ChosenPacks(_store(held_out, name), chosen) for name, chosen in packs.items()]
    most = max(len(chosen) for chosen in packs.values())
    chosen_ones = dataclasses.replace(held_out, names=list(packs), stores=stores, max_packs=most)
    tokens = held_out_losses(policy, chosen_ones, keeps_tokens=True).tokens
    return {(name, packs[name][index]): row_T for (name, index), row_T in tokens.items()}


def _store(held_out: HeldOut, name: str) -> SplitStore:
    return held_out.stores[list(held_out.names).index(name)]
