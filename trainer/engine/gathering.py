"""Whole values of parameters that ZeRO-3 has shared out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import nn


@contextlib.contextmanager
def gathered(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Hold the full values of ZeRO-3 parameters for reading; nothing at other stages. Collective."""
    sharded = [p for p in parameters if hasattr(p, "ds_id")]
    if not sharded:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(sharded, modifier_rank=None):
        yield


@contextlib.contextmanager
def filling(parameter: nn.Parameter) -> Iterator[None]:
    """Hold the whole value of a ZeRO-3 parameter for writing; that of rank 0 is kept. Collective."""
    if not hasattr(parameter, "ds_id"):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        yield


@contextlib.contextmanager
def looking_up_at_gathers(look: Callable[[], None]) -> Iterator[None]:
    """Call `look` before parameters are gathered, as they are when transformers loads them into a ZeRO-3 model.

    It may raise, on all ranks: none is in the collective yet.

    Ranks:
        Every rank gathers the same ones in the same order.
    """
    import deepspeed

    whole = deepspeed.zero.GatheredParameters

    def looked_up(*arguments: Any, **options: Any) -> Any:
        look()
        return whole(*arguments, **options)

    deepspeed.zero.GatheredParameters = looked_up
    try:
        yield
    finally:
        deepspeed.zero.GatheredParameters = whole
