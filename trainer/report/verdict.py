"""The verdict: what changed, in one sentence of plain words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from trainer.config.many import many
from trainer.evaluate.compare import MIN_DOCUMENTS, SetComparison
from trainer.report.number import decimals_for, fixed, signed

ORDER = ("target", "replay", "probe")


def verdict(sets: Sequence[SetComparison]) -> str:
    """Say what rose and fell; a set whose interval includes 0 has no change seen."""
    if not sets:
        return "No held-out set was measured."
    sets = sorted(sets, key=lambda one: ORDER.index(one.role))
    changed = [_changed(one) for one in sets if not is_unclear(one)]
    unclear = [f"{one.name} ({_interval(one)})" for one in sets if is_unclear(one)]
    parts = changed + ([f"no change seen in {listed(unclear)}"] if unclear else [])
    sentence = "; ".join(parts)
    if not changed:
        sentence = sentence[0].upper() + sentence[1:]
    return sentence + "."


def is_unclear(one: SetComparison) -> bool:
    """Tell whether the interval includes 0; without one, whether nothing changed at all."""
    if one.change_low is None or one.change_high is None:
        return one.change_nats == 0
    return one.change_low <= 0 <= one.change_high


def change_with_interval(one: SetComparison) -> str:
    """Return the change and its interval."""
    num_decimals = decimals_for(one.change_low, one.change_high)
    return f"{signed(one.change_nats, num_decimals)} ({_interval(one)})"


def in_a_word(one: SetComparison) -> str:
    """Return fell, rose or no change seen."""
    if is_unclear(one):
        return "no change seen"
    return "fell" if one.change_nats < 0 else "rose"


def between(low: float | None, high: float | None, num_decimals: int) -> str:
    """Return an interval in words."""
    if low is None or high is None:
        return f"no interval: fewer than {MIN_DOCUMENTS} documents"
    return f"{fixed(low, num_decimals)} to {fixed(high, num_decimals)}"


def no_interval(num_documents: Mapping[str, int]) -> str | None:
    """Say why held-out sets have no interval, and what to change; None where each has one.

    Args:
        num_documents: Held-out documents of each set.
    """
    few = [
        f"{name} ({many(count, 'document')})"
        for name, count in num_documents.items()
        if count < MIN_DOCUMENTS
    ]
    if not few:
        return None
    return (
        f"No interval for {listed(few)}: it takes {MIN_DOCUMENTS} held-out documents. Raise data.validation_frac "
        "(at most 0.5), or give more documents."
    )


def listed(words: Iterable[str]) -> str:
    """Join words with commas and a last `and`."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def _interval(one: SetComparison) -> str:
    return between(one.change_low, one.change_high, decimals_for(one.change_low, one.change_high))


def _changed(one: SetComparison) -> str:
    num_decimals = decimals_for(one.change_low, one.change_high)
    low, high = one.change_low, one.change_high
    if low is not None and high is not None:
        low, high = sorted((abs(low), abs(high)))
    size = fixed(abs(one.change_nats), num_decimals)
    return f"{one.name} {in_a_word(one)} by {size} nats ({between(low, high, num_decimals)})"
