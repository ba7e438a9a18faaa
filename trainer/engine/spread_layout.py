"""How experts that are spread over ranks are named and laid out, and how they become the base's tensors again.

DeepSpeed's layer holds this rank's experts as three tensors, gate, up and down, where transformers holds two, gate with
up and down, of all experts. Pure: read by an export, without ranks.

Shapes: L experts of a rank, E of a layer, F intermediate, H hidden.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SPREAD = "spread_experts"
"""Key of a checkpoint's file under which this is described."""
GATE, DOWN, UP = "experts.w1", "experts.w2", "experts.w3"
"""DeepSpeed's names, below its layer."""


@dataclass(frozen=True, slots=True)
class SpreadLayer:
    """One layer of experts; names are those below the causal model."""

    path: str
    renamed: tuple[tuple[str, str], ...]
    """How names of what every rank holds begin here, and in the base."""
    gate_up: str
    """Names of the experts' tensors in the base."""
    down: str
    is_transposed: bool
    """The base holds [E, H, 2F] and [E, F, H], and not [E, 2F, H] and [E, H, F]."""

    def tensors(self, whole: Callable[[str], Tensor]) -> dict[str, Callable[[], Tensor]]:
        """Return the base's tensors by name, made when called.

        Args:
            whole: Returns a tensor of all experts of the layer, by DeepSpeed's name: gate and up [E, F, H], down
                [E, H, F].
        """

        def laid(tensor: Tensor) -> Tensor:
            return tensor.transpose(1, 2) if self.is_transposed else tensor

        gate, down, up = (f"{self.path}.{name}" for name in (GATE, DOWN, UP))
        return {
            self.gate_up: lambda: laid(torch.cat([whole(gate), whole(up)], dim=1)),
            self.down: lambda: laid(whole(down)),
        }


@dataclass(frozen=True, slots=True)
class Spread:
    """The layers whose experts are spread, and over how many ranks each."""

    size: int
    """Ranks that share a layer's experts: rank r holds part r modulo this."""
    layers: tuple[SpreadLayer, ...]

    def is_expert(self, name: str) -> bool:
        """Tell whether a name below the causal model is one of experts of a rank."""
        return any(name == f"{layer.path}.{part}" for layer in self.layers for part in (GATE, DOWN, UP))

    def base_name(self, name: str) -> str:
        """Return the base's name of what every rank holds."""
        for layer in self.layers:
            for here, there in layer.renamed:
                if name.startswith(here):
                    return there + name.removeprefix(here)
        return name

    def described(self) -> dict[str, Any]:
        """Return this in plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, described: Mapping[str, Any]) -> Spread:
        """Return what `described` told of."""
        layers = tuple(
            SpreadLayer(**{**layer, "renamed": tuple(map(tuple, layer["renamed"]))})
            for layer in described["layers"]
        )
        return cls(described["size"], layers)
