"""How many answers pass: the share of single answers, and the chance that one of several does. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.evaluate.wilson import wilson_interval


def pass_at(num_answers: int, num_passed: int, k: int) -> float:
    """Return the chance that at least one of k answers, drawn of these without putting back, has passed.

    Source: Chen et al. 2021, arXiv 2107.03374: unbiased, where 1 - (1 - c / n)^k is not.
    """
    if num_answers - num_passed < k:
        return 1.0
    return 1.0 - math.comb(num_answers - num_passed, k) / math.comb(num_answers, k)


@dataclass(frozen=True, slots=True)
class PassRate:
    """The mean of pass@k over prompts with its 95 % interval."""

    k: int
    mean: float
    low: float
    high: float
    num_prompts: int

    def __str__(self) -> str:
        interval = f"{100 * self.low:.1f} to {100 * self.high:.1f}"
        return f"pass@{self.k} {100 * self.mean:.1f} % ({interval}; {self.num_prompts:,} prompts)"


def pass_rate(counts: Sequence[tuple[int, int]], k: int) -> PassRate | None:
    """Return pass@k over prompts; None where no prompt has so many answers with a verdict.

    The interval is that of a share of as many prompts: each counts as one case, however many answers it has, and what
    is between 0 and 1 spreads less than what is either. So it is never too narrow.

    Args:
        counts: Of each prompt the answers that have a verdict, and those of them that passed.
    """
    shares = [pass_at(n, c, k) for n, c in counts if n >= k]
    if not shares:
        return None
    total = math.fsum(shares)
    low, high = wilson_interval(total, len(shares))
    return PassRate(k, total / len(shares), low, high, len(shares))
