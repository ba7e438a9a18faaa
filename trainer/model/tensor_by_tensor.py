"""A look between the tensors of a model that transformers reads: 70 B take minutes, in which a signal may come."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

LOADING = "Loading weights"
"""How transformers calls the bar over the tensors that it puts into a model, without ZeRO-3."""


@contextlib.contextmanager
def looking_up(look: Callable[[], None]) -> Iterator[None]:
    """Call `look` before every tensor that transformers puts into a model; it may raise, which ends the reading.

    Ranks:
        Every rank, before the same tensor. ZeRO-3 puts none in this way: it gathers them.
    """
    from transformers.utils.logging import set_tqdm_hook

    def bar(
        factory: Callable[..., Iterable[Any]], args: tuple[Any, ...], options: dict[str, Any]
    ) -> Iterable[Any]:
        made = factory(*args, **options)
        return _each(made, look) if options.get("desc") == LOADING else made

    before = set_tqdm_hook(bar)
    try:
        yield
    finally:
        set_tqdm_hook(before)


def _each(things: Iterable[Any], look: Callable[[], None]) -> Iterator[Any]:
    for one in things:
        look()
        yield one
