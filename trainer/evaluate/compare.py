"""Compare a tuned model with its base on held-out documents: mean changes with bootstrap intervals.

Numpy only. Both models score the same documents, so an interval resamples documents, each with both of its
scores: how much documents differ from each other cancels out, which two separate intervals would not do. A document
that was cut into pieces is one, with the sums of its pieces.

Shapes: D documents, K numbers summed per document, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.errors import DataError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

NUM_RESAMPLES = 10_000
MIN_DOCUMENTS = 5
"""Fewer give no interval: resampling them draws the same few again and again, and looks surer than it is."""
SAME_NATS = 0.01
"""A change within it is none that anybody would notice: the right next word is 1 % more or less likely."""
LEVEL = 0.95
"""Share of resamples inside the interval."""
CHUNK_DRAWS = 1 << 20
"""Documents drawn at once; keeps memory flat whatever the number of documents."""


def side(low: float | None, high: float | None) -> int:
    """Return 1 for the interval of a loss, -1 for that of a gain, else 0: one that holds 0 or is within SAME_NATS."""
    if low is None or high is None:
        return 0
    return int(low > 0 and high > SAME_NATS) - int(high < 0 and low < -SAME_NATS)


@dataclass(frozen=True, slots=True)
class MeanWithInterval:
    """A mean over tokens; `low` and `high` are None with fewer than MIN_DOCUMENTS."""

    mean: float
    low: float | None
    high: float | None
    num_tokens: int
    num_documents: int


@dataclass(frozen=True, slots=True)
class SetComparison:
    """What training changed on one held-out set; a negative change is a lower, better loss.

    Units:
        `*_nats` per supervised token; `*_bits_per_byte` per byte of supervised text, None where unknown.
        `change_low` and `change_high` bound 95 %; both are None with fewer than MIN_DOCUMENTS documents.
    """

    name: str
    role: str
    num_documents: int
    num_targets: int
    num_bytes: int
    base_nats: float
    tuned_nats: float
    change_nats: float
    change_low: float | None
    change_high: float | None
    base_bits_per_byte: float | None
    tuned_bits_per_byte: float | None

    def to_plain(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return asdict(self)


def by_document(documents_P: Ints, values_P: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Add up numbers of pieces over the pieces of each document, in the order of the documents' numbers.

    What is drawn again must be drawn as a whole: pieces of one document rise and fall together.

    Shapes: P pieces.
    Source: clustered standard errors (Miller 2024, arXiv:2411.00640, section 2.2); here whole clusters are resampled.
    """
    assert values_P.shape == documents_P.shape, "a number for each piece"
    place_P = np.unique(documents_P, return_inverse=True)[1]
    sums_D = np.zeros(int(place_P.max(initial=-1)) + 1, dtype=values_P.dtype)
    np.add.at(sums_D, place_P, values_P)
    return sums_D


def compare_set(
    name: str,
    role: str,
    base_nll_D: Floats,
    tuned_nll_D: Floats,
    targets_D: Ints,
    bytes_D: Ints | None = None,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> SetComparison:
    """Compare two models on the documents of a set.

    Documents without a supervised token are left out.

    Args:
        role: target, replay or probe.
        base_nll_D: Nats summed over the supervised tokens of a document.
        bytes_D: UTF-8 bytes of the supervised text; None or all 0 where unknown.

    Raises:
        DataError: Arrays that do not fit together, or a number that is not finite.
    """
    bytes_D = np.zeros_like(targets_D) if bytes_D is None else bytes_D
    sums = {"base_nll_D": base_nll_D, "tuned_nll_D": tuned_nll_D, "bytes_D": bytes_D}
    base_D, tuned_D, size_D, count_D = _scored(name, sums, "targets_D", targets_D)
    num_targets, num_bytes = int(count_D.sum()), int(size_D.sum())
    base, tuned = float(base_D.sum()), float(tuned_D.sum())
    low, high = _interval(tuned_D - base_D, count_D, num_resamples, seed)
    return SetComparison(
        name=name,
        role=role,
        num_documents=len(count_D),
        num_targets=num_targets,
        num_bytes=num_bytes,
        base_nats=base / num_targets,
        tuned_nats=tuned / num_targets,
        change_nats=float((tuned_D - base_D).sum()) / num_targets,
        change_low=low,
        change_high=high,
        base_bits_per_byte=base / math.log(2) / num_bytes if num_bytes else None,
        tuned_bits_per_byte=tuned / math.log(2) / num_bytes if num_bytes else None,
    )


def mean_with_interval(
    name: str,
    sum_D: Floats,
    tokens_D: Ints,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> MeanWithInterval:
    """Return the mean over tokens of a number summed per document, such as KL in nats.

    Raises:
        DataError: Arrays that do not fit together, or a number that is not finite.
    """
    values_D, count_D = _scored(name, {"sum_D": sum_D}, "tokens_D", tokens_D)
    num_tokens = int(count_D.sum())
    low, high = _interval(values_D, count_D, num_resamples, seed)
    return MeanWithInterval(float(values_D.sum()) / num_tokens, low, high, num_tokens, len(count_D))


def _scored(name: str, sums: dict[str, npt.NDArray[Any]], count_key: str, count_D: Ints) -> list[Floats]:
    """Check the arrays of a set; return the sums and the counts of the documents that have tokens."""
    arrays = {count_key: count_D, **sums}
    for key, values_D in arrays.items():
        if values_D.ndim != 1 or len(values_D) != len(count_D):
            raise DataError(
                f"`{key}` of held-out set {name!r} must have shape [{len(count_D)}], one number a document, "
                f"but is {list(values_D.shape)} instead. Score every document once with both models."
            )
        bad = np.flatnonzero(~np.isfinite(values_D))
        if bad.size:
            raise DataError(
                f"`{key}` of held-out set {name!r} must be finite, but is {values_D[bad[0]]} for document "
                f"{bad[0]} ({bad.size} of {len(values_D)} are not finite) instead. Look at that document, "
                "or evaluate in a wider dtype."
            )
    for key in (count_key, "bytes_D"):
        if key in arrays and (arrays[key] < 0).any():
            raise DataError(
                f"`{key}` of held-out set {name!r} must be 0 or more, but is {arrays[key].min()} instead. "
                "Count tokens and bytes anew."
            )
    kept_D = count_D > 0
    if not kept_D.any():
        raise DataError(
            f"`{count_key}` of held-out set {name!r} must have a supervised token, but is 0 for all "
            f"{len(count_D)} documents instead. Hold out more documents of that source."
        )
    return [values_D[kept_D].astype(np.float64) for values_D in (*sums.values(), count_D)]


def _interval(
    sum_D: Floats, count_D: Floats, num_resamples: int, seed: int
) -> tuple[float | None, float | None]:
    """Return the percentile interval of sum over count; few documents say nothing about others."""
    if len(count_D) < MIN_DOCUMENTS:
        return None, None
    values_KD = np.stack([sum_D, count_D])
    totals_KR = np.concatenate(list(_resampled_totals(values_KD, num_resamples, seed)), axis=1)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(totals_KR[0] / totals_KR[1], [tail, 1 - tail])
    return float(low), float(high)


def _resampled_totals(values_KD: Floats, num_resamples: int, seed: int) -> Iterator[Floats]:
    """Yield totals over documents drawn with replacement, some resamples at a time."""
    rng = np.random.default_rng(seed)
    num_documents = values_KD.shape[1]
    rows = max(1, CHUNK_DRAWS // num_documents)
    for start in range(0, num_resamples, rows):
        size = (min(rows, num_resamples - start), num_documents)
        drawn_RD = rng.integers(0, num_documents, size, dtype=np.int32)
        yield np.stack([values_D[drawn_RD].sum(axis=1) for values_D in values_KD])
