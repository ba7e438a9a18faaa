"""Seed the random number generators of a rank, capture and restore their states, and choose repeatable kernels."""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int, rank: int) -> None:
    """Seed Python, NumPy and torch; ranks differ, so that dropout does."""
    random.seed(seed * 1_000_003 + rank)
    np.random.seed((seed * 1_000_003 + rank) % 2**32)
    torch.manual_seed(seed * 1_000_003 + rank)


def choose_kernels(deterministic: bool) -> None:
    """Ask torch, and flash attention, of which torch does not know, for kernels that give the same bits every time.

    The backward of flash attention adds up in whatever order blocks end, unless transformers tells it not to: it looks
    for that in the environment at every call. Two runs on an H200 differed from the first step on.
    """
    torch.use_deterministic_algorithms(deterministic)
    if deterministic:
        os.environ["FLASH_ATTENTION_DETERMINISTIC"] = "1"


def capture_rng() -> dict[str, Any]:
    """Return the state of all generators as plain values and byte tensors."""
    version, internal, gauss = random.getstate()
    name, keys, pos, has_gauss, cached = np.random.get_state()
    state: dict[str, Any] = {
        "python": [version, list(internal), gauss],
        "numpy": [name, np.asarray(keys).tolist(), int(pos), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state().tolist(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state().tolist()
    return state


def check_rng(state: Any) -> None:
    """Refuse what no generators can be set to, before one of them is.

    Raises:
        LookupError, TypeError, ValueError, RuntimeError, OverflowError: It is no captured state.
    """
    _set(state, random.Random(), np.random.RandomState(), torch.Generator())
    if "cuda" in state and torch.cuda.is_available():
        torch.Generator("cuda").set_state(torch.tensor(state["cuda"], dtype=torch.uint8))


def restore_rng(state: dict[str, Any]) -> None:
    """Set all generators to a captured state."""
    _set(state, random, np.random, torch.default_generator)
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.tensor(state["cuda"], dtype=torch.uint8))


def _set(state: dict[str, Any], python: Any, numpy: Any, of_torch: torch.Generator) -> None:
    version, internal, gauss = state["python"]
    python.setstate((version, tuple(internal), gauss))
    name, keys, pos, has_gauss, cached = state["numpy"]
    numpy.set_state((name, np.asarray(keys, dtype=np.uint32), pos, has_gauss, cached))
    of_torch.set_state(torch.tensor(state["torch"], dtype=torch.uint8))
