"""How far text is from what a base knows, by its loss on it before any training. Numpy only.

Bits per byte, and not nats per token, tell a shift: a tokenizer cuts text that it was not made for into many tokens,
each of which is easy to guess. Of what benchmarks/forgetting/ trained on, German manual pages cost
SmolLM2-135M-Instruct 3.06 nats a token and general English 2.92 to 2.99, hardly less; in bits per byte 1.79 and 0.99 to
1.01. A shift is judged by letters and not by bytes, of which a letter of Cyrillic has two and one of Devanagari three:
by bytes Hindi, which that model hardly knows, would be near.

Shapes: W windows of text, D documents.
"""

from __future__ import annotations

import math
import unicodedata
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from trainer.config.replay import Shift
from trainer.evaluate.compare import MIN_DOCUMENTS, Floats, Ints, by_document, mean_with_interval

WIDE_LETTERS = 3
"""What a wide character of an East Asian script counts, in letters: about what it says in letters of an alphabet."""
STRONG_RATIO = 1.3
"""Bits per letter of a source over those of general text from which a shift is a strong one.

The geometric mean of the two that were measured (docs/forgetting.md): 1.79 / 1.00 for German manual pages, where
training without replay lost 0.065 nats on maths, and 0.956 / 1.00 for the Python documentation, where it lost none.
"""
KNOWN_SHARE = 0.5
"""A document of less than this share of the bits per letter of general text is known already: recited, or trivial."""


@dataclass(frozen=True, slots=True)
class TextLoss:
    """The base's loss on a sample of one text.

    Units:
        `nats` per token, `bits_per_byte` per byte of what is learnt; `low` and `high` bound the 95 % of the latter, and
        are None with fewer than MIN_DOCUMENTS documents.
    """

    name: str
    nats: float
    bits_per_byte: float
    low: float | None
    high: float | None
    num_documents: int
    num_tokens: int
    num_bytes: int
    bits_by_document: tuple[float, ...]
    """Per letter."""
    bits_per_letter: float
    letter_low: float | None
    letter_high: float | None

    def known(self, general: float) -> int:
        """Return the documents that cost less than KNOWN_SHARE of the bits per letter of general text."""
        return sum(bits < KNOWN_SHARE * general for bits in self.bits_by_document)

    def to_plain(self) -> dict[str, Any]:
        """Return what is kept in files."""
        plain = asdict(self)
        del plain["bits_by_document"]
        return plain


def count_letters(text: str) -> int:
    """Count characters, wide ones of East Asian scripts as WIDE_LETTERS."""
    return sum(WIDE_LETTERS if unicodedata.east_asian_width(one) in "WF" else 1 for one in text)


def text_loss(
    name: str, nll_W: Floats, tokens_W: Ints, bytes_W: Ints, letters_W: Ints, documents_W: Ints
) -> TextLoss:
    """Add windows up by document and return the loss with its interval, which resamples documents.

    Windows without a byte or a token of what is learnt are left out by who makes them.
    """
    nll_D, tokens_D, bytes_D, letters_D = (
        by_document(documents_W, one) for one in (nll_W, tokens_W, bytes_W, letters_W)
    )
    bits = mean_with_interval(name, nll_D / math.log(2), bytes_D)
    by_letter = mean_with_interval(name, nll_D / math.log(2), letters_D)
    return TextLoss(
        name=name,
        nats=float(nll_D.sum() / tokens_D.sum()),
        bits_per_byte=bits.mean,
        low=bits.low,
        high=bits.high,
        num_documents=len(nll_D),
        num_tokens=int(tokens_D.sum()),
        num_bytes=int(bytes_D.sum()),
        bits_by_document=tuple((nll_D / math.log(2) / letters_D).tolist()),
        bits_per_letter=by_letter.mean,
        letter_low=by_letter.low,
        letter_high=by_letter.high,
    )


@dataclass(frozen=True, slots=True)
class DataShift:
    """How far a source is from general text."""

    kind: Shift
    ratio: float
    """Bits per letter of the source over those of general text."""
    low: float | None
    high: float | None
    """95 %, of both: the relative half widths of their intervals added as squares, as of independent samples; None
    where either has no interval."""

    @property
    def is_close(self) -> bool:
        """Tell whether the interval holds both kinds, or there is none."""
        return self.low is None or self.high is None or self.low < STRONG_RATIO <= self.high


def judge_shift(source: TextLoss, general: TextLoss) -> DataShift:
    """Compare the bits per letter of a source with those of general text."""
    ratio = source.bits_per_letter / general.bits_per_letter
    low = high = None
    if None not in (source.letter_low, source.letter_high, general.letter_low, general.letter_high):
        # Below: a cheap source over a dear general text. Above: the other way round.
        low = ratio * math.exp(-math.hypot(_below(source), _above(general)))
        high = ratio * math.exp(math.hypot(_above(source), _below(general)))
    return DataShift(Shift.strong if ratio >= STRONG_RATIO else Shift.weak, ratio, low, high)


def _below(loss: TextLoss) -> float:
    """Return how far the interval reaches below, as the logarithm of a ratio."""
    assert loss.letter_low is not None
    return math.log(loss.bits_per_letter / loss.letter_low)


def _above(loss: TextLoss) -> float:
    assert loss.letter_high is not None
    return math.log(loss.letter_high / loss.bits_per_letter)


def few_documents(losses: list[TextLoss]) -> list[str]:
    """Return the texts that have no interval."""
    return [one.name for one in losses if one.num_documents < MIN_DOCUMENTS]


def shared_documents(hashes: dict[str, np.ndarray[Any, Any]]) -> list[tuple[str, str, int]]:
    """Return each two sources that hold the same documents, and how many."""
    names = list(hashes)
    found = [
        (one, other, len(np.intersect1d(hashes[one], hashes[other])))
        for number, one in enumerate(names)
        for other in names[number + 1 :]
    ]
    return [entry for entry in found if entry[2]]
