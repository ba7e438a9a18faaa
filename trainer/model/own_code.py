"""The model's own code, kept while kernels stand in its place, and the way back to it for a while."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from torch import nn

from trainer.model.exact_routers import ExactForward


class OwnCode:
    """What the layers of a model ran, and the functions of their files, before kernels were put in."""

    def __init__(self, model: nn.Module) -> None:
        """Look at a loaded model. Forwards that loading put in stay; layers that come later run their class's."""
        self._model = model
        self._forwards = {id(module): vars(module).get("forward") for module in model.modules()}
        files = {type(module).__module__ for module in model.modules()} & sys.modules.keys()
        self._functions = {
            name: {key: value for key, value in vars(sys.modules[name]).items() if callable(value)}
            for name in files
        }

    @contextlib.contextmanager
    def restored(self) -> Iterator[int]:
        """Run the model's own code; gives how many kernels were taken out for it.

        Routers in float32 are none: in bf16 they choose other experts, and nothing could be compared.
        """
        taken: list[tuple[dict[str, Any], str, Any]] = []
        for module in self._model.modules():
            _swap(vars(module), "forward", self._forwards.get(id(module)), taken)
        for name, functions in self._functions.items():
            for key, function in functions.items():
                _swap(vars(sys.modules[name]), key, function, taken)
        try:
            yield len(taken)
        finally:
            for place, key, value in taken:
                place[key] = value


def _swap(place: dict[str, Any], key: str, own: Any, taken: list[tuple[dict[str, Any], str, Any]]) -> None:
    now = place.get(key)
    if now is None or now is own or isinstance(now, ExactForward):
        return
    taken.append((place, key, now))
    if own is None:
        del place[key]
    else:
        place[key] = own
