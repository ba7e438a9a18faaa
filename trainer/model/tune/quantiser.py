"""The package that packs a base in 4 bits: whether it is here. Loads no torch until it is asked for itself."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator

from trainer.config.rule import Problem, problem
from trainer.errors import ConfigError
from trainer.model.lean import import_peft

INSTALL = "pip install 'palimpsest-trainer[qlora]'"
PACKAGE = "bitsandbytes"


def quantiser_problems() -> Iterator[Problem]:
    """Yield a problem where bitsandbytes is not installed; one that is may still not load."""
    if importlib.util.find_spec(PACKAGE) is None:
        yield problem("tune.quantise", _lacking(f"No module named '{PACKAGE}'"))


def require_bitsandbytes() -> None:
    """Raise when bitsandbytes is not there, or cannot be loaded.

    Raises:
        ConfigError: Says how to install it.
    """
    # It advises a kernel for inference on CPUs, which training has no use for.
    logging.getLogger(PACKAGE).setLevel(logging.ERROR)
    try:
        import_peft()
        import bitsandbytes  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(problem("tune.quantise", _lacking(reason)).sentence) from error


def _lacking(reason: str) -> str:
    return f"must be none without bitsandbytes, but is nf4 instead ({reason}). Install it with: {INSTALL}"
