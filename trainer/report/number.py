"""Numbers as people read them: signs, units and ticks of an axis."""

from __future__ import annotations

import math

MINUS = "\u2212"
THIN_SPACE = "\u202f"
LEAST_SPAN = 1e-200
"""Values closer than this are one: the spacing of the ticks between them would round to 0."""


def count(value: float) -> str:
    """Return a whole number with thousands apart."""
    return f"{round(value):,}"


def fixed(value: float, num_decimals: int) -> str:
    """Return a number with a real minus sign; zero has no sign."""
    text = f"{abs(value):,.{num_decimals}f}"
    is_zero = not text.strip("0.,")
    return text if value >= 0 or is_zero else MINUS + text


def signed(value: float, num_decimals: int) -> str:
    """Return a number that always shows its sign, unless it rounds to zero."""
    text = fixed(value, num_decimals)
    return text if text[0] == MINUS or not text.strip("0.,") else f"+{text}"


def percent(share: float) -> str:
    """Return a share as a percentage."""
    return f"{100 * share:.1f}{THIN_SPACE}%"


def decimals_for(low: float | None, high: float | None) -> int:
    """Return how many decimals show half an interval's width: 3, or more for a very narrow one."""
    if low is None or high is None or high <= low:
        return 3
    return min(max(-math.floor(math.log10((high - low) / 2)), 3), 6)


def ticks(low: float, high: float, num_wanted: int = 5, whole: bool = False) -> list[float]:
    """Return round values that enclose `low` to `high`, evenly spaced.

    `whole` allows whole numbers only: there is no step 2.5.
    """
    size = max(abs(low), abs(high))
    if high - low <= max(1e-9 * size, LEAST_SPAN):
        room = 0.1 * size if size > LEAST_SPAN else 1.0
        low, high = (low, low + 1) if whole else (low - room, high + room)
    raw = (high - low) / max(num_wanted - 1, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    spacing = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    if whole:
        spacing = max(1.0, float(math.ceil(spacing)))
    first, last = math.floor(low / spacing + 1e-9), math.ceil(high / spacing - 1e-9)
    return [number * spacing for number in range(first, last + 1)]


def tick_labels(values: list[float]) -> list[str]:
    """Return labels with as many decimals as tell the ticks apart, in thousands or millions where large."""
    largest = max(abs(value) for value in values)
    spacing = abs(values[1] - values[0]) if len(values) > 1 else largest or 1.0
    if 0 < largest < 1e-3:
        return [_scientific(value) for value in values]
    unit, suffix = next(
        (u, s)
        for u, s in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"), (1.0, ""))
        if largest >= u or u == 1
    )
    if suffix == "k" and largest < 10_000 and spacing >= 1:
        unit, suffix = 1.0, ""
    num_decimals = next(
        n for n in range(13) if math.isclose(round(spacing / unit, n), spacing / unit, rel_tol=1e-6)
    )
    return [fixed(value / unit, num_decimals) + (suffix if value else "") for value in values]


def short(value: float) -> str:
    """Return a number in about four digits, for hover text and labels."""
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        num_decimals = 0 if value == round(value) else max(0, 3 - math.floor(math.log10(abs(value) or 1)))
        return fixed(value, min(num_decimals, 5))
    return count(value) if abs(value) >= 1e4 else _scientific(value)


def compact(value: float) -> str:
    """Return a number in at most four digits and without zeros at its end, as people write settings."""
    mantissa, e, exponent = f"{value:.4g}".partition("e")
    return f"{mantissa}{e}{int(exponent) if e else ''}".replace("-", MINUS)


def shown(value: str) -> str:
    """Return the value of an override as it can be typed: no quotes, at most four digits, a plain minus."""
    text = value.strip("'\"")
    try:
        return compact(float(text)).replace(MINUS, "-") if "." in text or "e" in text.lower() else text
    except ValueError:
        return text


def _scientific(value: float) -> str:
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}".replace("-", MINUS)
