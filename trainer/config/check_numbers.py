"""One rule for every number of a configuration: it is finite. Pure.

Comparisons with NaN are false and those with infinity may be true, so a rule about a range lets one or the other pass.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from trainer.config.rule import Problem, must

MOST_SEED = 2**32 - 1
"""Of numpy and torch both take every seed up to it; a negative one is another for torch and none for numpy."""


def number_problems(section: Any, key: str = "") -> Iterator[Problem]:
    """Yield a problem for every number that is not finite.

    Args:
        section: The configuration, a section of it, or a value.
        key: Where it stands, dotted.
    """
    if isinstance(section, float):
        if not math.isfinite(section):
            yield must(key, "a finite number", section, "Set a number, or remove it for the default.")
    elif dataclasses.is_dataclass(section) or isinstance(section, dict):
        for name, value in (section if isinstance(section, dict) else vars(section)).items():
            yield from number_problems(value, f"{key}.{name}" if key else str(name))
    elif isinstance(section, list | tuple):
        for value in section:
            yield from number_problems(value, key)


def seed_problems(seed: int) -> Iterator[Problem]:
    """Yield a problem for a seed that not every generator takes."""
    if not 0 <= seed <= MOST_SEED:
        yield must("seed", f"in [0, {MOST_SEED}]", seed, "Set seed=0.")
