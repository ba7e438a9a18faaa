"""The documents that lost most: which they are, and by how much each of their tokens became less likely.

What a loss rose by in the mean says nothing of what was lost. Here held-out documents are ranked by the rise of their
own loss, and the tokens of the first are shown with theirs.

Shapes: P pieces of a set, D documents, T positions of a pack.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trainer.config.data import TokenValue
from trainer.data.store.store import SplitStore
from trainer.data.types import Int64s, Pack, Unit
from trainer.errors import TrainerError
from trainer.evaluate.compare import by_document

if TYPE_CHECKING:
    from trainer.evaluate.held_out import PieceLosses

LABEL = TokenValue.label.value
FILE_NAME = "forgotten_documents.json"
VERSION = 1
MIN_TARGETS = 16
"""Of a document with fewer supervised tokens the mean is that of a few words: it comes behind all longer ones."""
MOST_TOKENS = 240
"""Of a document, which are shown."""
MOST_CHARACTERS = 2_000
CUT = "\N{REPLACEMENT CHARACTER}"
Decode = Callable[[list[int]], str]


@dataclass(frozen=True, slots=True)
class HeldOutPiece:
    """A piece of a pack whose loss is counted: a document, or a part of one."""

    pack: int
    start: int
    """Of its first token in the pack."""
    length: int
    document: int


def counted_pieces(split: SplitStore, max_packs: int) -> Iterator[tuple[HeldOutPiece, Pack]]:
    """Yield the pieces that held-out losses count, in their order, each with its pack.

    Of pairs the chosen answers, of labelled answers the desirable ones.
    """
    step = 2 if split.unit is Unit.pair else 1
    for index in range(min(split.num_packs, max_packs)):
        pack, start = split.pack(index), 0
        documents = split.documents_of(index).tolist()
        for place, (length, document) in enumerate(zip(pack.lengths, documents, strict=True)):
            end = start + length
            is_liked = split.unit is not Unit.answer or pack.values[LABEL][start:end].sum() > 0
            if pack.supervised[start + 1 : end].any() and place % step == 0 and is_liked:
                yield HeldOutPiece(index, start, length, document), pack
            start = end


@dataclass(frozen=True, slots=True)
class Rise:
    """How far the loss of a document rose."""

    set: str
    document: int
    base_nats: float
    """Mean over its supervised tokens."""
    tuned_nats: float
    num_targets: int

    @property
    def nats(self) -> float:
        """Return the rise in nats per token."""
        return self.tuned_nats - self.base_nats


def rises(name: str, documents_P: Int64s, base: PieceLosses, tuned: PieceLosses) -> list[Rise]:
    """Return the rise of every document of a set whose loss rose."""
    numbers = np.unique(documents_P)
    sums = (by_document(documents_P, one) for one in (base.nll_P, tuned.nll_P, base.targets_P))
    return [
        Rise(name, int(number), before / count, after / count, int(count))
        for number, before, after, count in zip(numbers, *sums, strict=True)
        if after > before
    ]


def most_lost(found: Sequence[Rise], num: int) -> list[Rise]:
    """Return the documents whose loss rose most per token, the most first; short ones come behind all others."""
    return sorted(found, key=lambda one: (one.num_targets < MIN_TARGETS, -one.nats))[:num]


@dataclass(frozen=True, slots=True)
class TextPart:
    """Some characters and by how many nats their tokens rose; None where nothing is supervised."""

    text: str
    rise: float | None


@dataclass(frozen=True, slots=True)
class ForgottenDocument:
    """A document that lost, and the part of it that is shown."""

    set: str
    document: int
    """Its number in the set, from 0."""
    base_nats: float
    tuned_nats: float
    num_targets: int
    num_tokens: int
    """Of the piece that is shown."""
    first_token: int
    """Of the piece, which is the first that is shown."""
    parts: tuple[TextPart, ...]
    is_cut: bool
    """More of it lies behind."""


def show(
    rise: Rise,
    piece: HeldOutPiece,
    pack: Pack,
    base_T: npt.NDArray[Any],
    tuned_T: npt.NDArray[Any],
    decode: Decode,
) -> ForgottenDocument:
    """Return the tokens of a piece with their rises: all, or the run of MOST_TOKENS that rose most.

    The loss of a token stands at the position before it, and the first token of a piece has none.
    """
    here = slice(piece.start, piece.start + piece.length)
    ids, learnt = pack.tokens[here], pack.supervised[here].copy()
    learnt[0] = False
    rise_T = np.zeros(piece.length)
    before = slice(piece.start, piece.start + piece.length - 1)
    rise_T[1:] = tuned_T[before].astype(np.float64) - base_T[before].astype(np.float64)
    rise_T[~learnt] = 0.0
    first = _window(rise_T, MOST_TOKENS)
    shown = slice(first, first + MOST_TOKENS)
    parts, is_full = _parts(ids[shown].tolist(), rise_T[shown], learnt[shown], decode)
    return ForgottenDocument(
        set=rise.set,
        document=rise.document,
        base_nats=rise.base_nats,
        tuned_nats=rise.tuned_nats,
        num_targets=rise.num_targets,
        num_tokens=piece.length,
        first_token=first,
        parts=tuple(parts),
        is_cut=is_full or first + MOST_TOKENS < piece.length,
    )


def _window(rise_T: npt.NDArray[np.float64], size: int) -> int:
    """Return where the run of tokens begins that rose most together; the first of equal ones."""
    if len(rise_T) <= size:
        return 0
    sums = np.concatenate([[0.0], np.cumsum(rise_T)])
    return int(np.argmax(sums[size:] - sums[:-size]))


def _parts(
    ids: list[int], rises_T: npt.NDArray[np.float64], learnt_T: npt.NDArray[np.bool_], decode: Decode
) -> tuple[list[TextPart], bool]:
    """Return text and rise of tokens, and whether characters ran out.

    Tokens that hold a piece of a character are joined until it is whole, and so are those of which nothing is learnt.
    """
    parts: list[TextPart] = []
    num_characters, begin = 0, 0
    for end in range(1, len(ids) + 1):
        is_last = end == len(ids)
        text = decode(ids[begin:end])
        goes_on = not is_last and not learnt_T[begin:end].any() and not learnt_T[end]
        if not is_last and ((text.endswith(CUT) and end - begin < 4) or goes_on):
            continue
        known = learnt_T[begin:end]
        rise = round(float(rises_T[begin:end].sum()), 3) if known.any() else None
        room = MOST_CHARACTERS - num_characters
        if len(text) > room:
            return [*parts, TextPart(text[:room], rise)], True
        parts.append(TextPart(text, rise))
        num_characters += len(text)
        begin = end
    return parts, False


def forgotten_text(tuned: str, documents: Sequence[ForgottenDocument]) -> str:
    """Return the contents of the file.

    Args:
        tuned: The checkpoint it is about.
    """
    plain = [
        {name: getattr(one, name) for name in _NUMBERS}
        | {"parts": [[part.text, part.rise] for part in one.parts]}
        for one in documents
    ]
    lines = ",\n".join(json.dumps(one) for one in plain)
    return f'{{"version": {VERSION}, "tuned": {json.dumps(tuned)}, "documents": [\n{lines}\n]}}\n'


_NUMBERS = (
    *("set", "document", "base_nats", "tuned_nats", "num_targets", "num_tokens", "first_token"),
    "is_cut",
)


def read_forgotten(path: Path, tuned: str) -> tuple[ForgottenDocument, ...] | None:
    """Read the file; None where there is none, or one of another checkpoint.

    Raises:
        TrainerError: It is not as this module writes it.
    """
    if not path.exists():
        return None
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        if plain["version"] != VERSION:
            raise ValueError(f"version {plain['version']}")
        found = tuple(_read_one(one) for one in plain["documents"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise TrainerError(
            f"{path} must be as a run writes it, but is not: {error!r}. Delete it and measure again."
        ) from error
    return found if plain["tuned"] == tuned else None


def _read_one(plain: Mapping[str, Any]) -> ForgottenDocument:
    parts = tuple(TextPart(str(text), None if rise is None else float(rise)) for text, rise in plain["parts"])
    kinds: dict[str, Callable[[Any], Any]] = {
        "set": str,
        "base_nats": float,
        "tuned_nats": float,
        "is_cut": bool,
    }
    return ForgottenDocument(**{name: kinds.get(name, int)(plain[name]) for name in _NUMBERS}, parts=parts)
