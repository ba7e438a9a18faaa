"""Which prompts of the data a round answers: those of the packs that its steps draw. Pure.

A prompt is what stands before the last run of learnt tokens of a document; earlier runs are turns that were said.
Nothing but stores, plan and seed decides which prompts come in which round, so ranks do not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from trainer.data.pack.made import MadePiece, pieces_of
from trainer.data.pack.refs import PackRef
from trainer.data.store.store import SplitStore
from trainer.data.types import Bools
from trainer.errors import DataError


class PiecePlace(NamedTuple):
    """Where a document is in a run: a source, a pack of it, the pass over its pool, and a piece of the pack."""

    source: int
    pack: int
    epoch: int
    piece: int

    def key(self, name: str) -> str:
        """Return what tells it from every other one of the run, by the name of its source."""
        return f"{name}:{self.pack}:{self.epoch}:{self.piece}"


@dataclass(frozen=True, slots=True)
class AskedPiece:
    """A document whose answer the model is to give anew."""

    place: PiecePlace
    prompt: list[int]


@dataclass(slots=True)
class RoundPrompts:
    """What the documents of some packs are to a round."""

    prompts: list[AskedPiece]
    num_given: int = 0
    """Documents with a prompt that keep the answer of the data, by the share that is asked for."""
    num_without: int = 0
    """Documents without a prompt before what is learnt, or whose prompt leaves no room, which stay as they are."""


def find_prompts(
    refs: Sequence[PackRef],
    stores: Sequence[SplitStore],
    names: Sequence[str],
    sources: Collection[int],
    share: float,
    seed: int,
) -> RoundPrompts:
    """Return the prompts of packs, in their order.

    Args:
        sources: Numbers of the sources whose prompts are answered.
        share: Of the prompts; each is drawn by its place and the seed.
    """
    found = RoundPrompts([])
    for ref in refs:
        if ref.source not in sources:
            continue
        store = stores[ref.source]
        for number, piece in enumerate(pieces_of(store.pack(ref.pack))):
            begin = answer_begins(piece.supervised)
            if begin is None:
                continue
            place = PiecePlace(*ref, number)
            if not 0 < begin < store.seq_len:
                found.num_without += 1
            elif not is_drawn(share, seed, place.key(names[ref.source])):
                found.num_given += 1
            else:
                found.prompts.append(AskedPiece(place, piece.tokens[:begin].tolist()))
    return found


def check_prompts(stores: Sequence[SplitStore], names: Sequence[str], sources: Collection[int]) -> None:
    """Refuse a source of which no document has a prompt before what is learnt, with room for an answer.

    Raises:
        DataError: Names the source.
    """
    for source in sorted(sources):
        refs = (PackRef(source, pack, 0) for pack in range(stores[source].num_packs))
        if stores[source].num_packs and not any(
            find_prompts([ref], stores, names, [source], 1.0, 0).prompts for ref in refs
        ):
            raise DataError(
                f"`data.sources.{names[source]}` must hold documents with a prompt before what is learnt, and room for "
                f"an answer in data.seq_len={stores[source].seq_len}, for objective.distill.on_policy, but holds none "
                "instead. Give rows with a prompt and an answer (format=chat, completion, or ids with "
                "columns.loss_mask), or set objective.distill.on_policy.share=0."
            )


def answer_begins(supervised: Bools) -> int | None:
    """Return where the last run of learnt tokens of a document begins; None where nothing is learnt."""
    before = np.concatenate([[False], supervised[:-1]])
    begins = np.flatnonzero(supervised & ~before)
    return int(begins[-1]) if len(begins) else None


def is_drawn(share: float, seed: int, key: str) -> bool:
    """Draw a prompt with a probability: by a hash, which no order of prompts changes."""
    digest = hashlib.sha256(f"palimpsest-share:{seed}:{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def with_answer(prompt: Sequence[int], answer: Sequence[int]) -> MadePiece:
    """Return the document of a prompt and an answer, of which the answer is learnt."""
    tokens = np.array([*prompt, *answer], dtype=np.int64)
    return MadePiece(tokens, np.arange(len(tokens)) >= len(prompt))
