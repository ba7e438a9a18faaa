"""The interval of a share. Pure."""

from __future__ import annotations

import math

Z = 1.959963984540054
"""Of a normal distribution, 95 % lies so many standard deviations from the middle at most."""


def wilson_interval(num_right: float, num_all: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of independent cases, which stays within 0 and 1 and has a width at both.

    Args:
        num_right: Cases that are right; a part of a case where one may be right in part.
        num_all: Cases, at least one.
    Source: Wilson 1927, doi:10.1080/01621459.1927.10502953.
    """
    share, unit = num_right / num_all, Z * Z / num_all
    middle = share + unit / 2
    width = Z * math.sqrt(share * (1 - share) / num_all + unit / (4 * num_all))
    low, high = (middle - width) / (1 + unit), (middle + width) / (1 + unit)
    return max(min(low, share), 0.0), min(max(high, share), 1.0)
