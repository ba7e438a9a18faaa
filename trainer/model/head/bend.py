"""What a model does to its logits after the output layer, found by asking the model itself.

Scales (Granite, Cohere) and soft caps (Gemma) stand under other names in every family. So the model's own forward is
called between a body that returns chosen hidden states and an output layer that returns chosen logits: what comes out
of that is the whole change, whatever its name.

Shapes: B rows, H hidden, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainer.errors import ModelError
from trainer.model.body import body_of
from trainer.model.scorer import output_layer

_NUM_PROBED = 257
_CLOSE = {True: 1e-9, False: 1e-5}
"""How near the formula must be, as a share of the largest probe: where the model keeps float64, and where not."""


@dataclass(frozen=True, slots=True)
class Bend:
    """cap * tanh(scale * z / cap) of each logit z; scale * z where there is no cap."""

    scale: float = 1.0
    cap: float | None = None

    @property
    def is_none(self) -> bool:
        """Tell whether logits stay as they are."""
        return self.scale == 1.0 and self.cap is None

    def of(self, logits: Tensor) -> Tensor:
        """Return the changed logits, differentiable; the same tensor where nothing changes them."""
        if self.is_none:
            return logits
        if self.cap is None:
            return logits * self.scale
        return self.cap * torch.tanh(logits * (self.scale / self.cap))

    def back_(self, grad: Tensor, bent: Tensor) -> Tensor:
        """Turn the gradient of changed logits into that of the output layer's, in place; rows of `bent` fit it."""
        if self.is_none:
            return grad
        if self.cap is not None:
            grad.mul_(1.0 - (bent / self.cap).square())
        return grad.mul_(self.scale)

    def describe(self) -> str:
        """Say what is done to logits; empty where nothing is."""
        parts = [f"scaled by {self.scale:.6g}"] if self.scale != 1.0 else []
        return " and ".join(parts + ([f"capped at {self.cap:g}"] if self.cap is not None else []))


NO_BEND = Bend()


def find_bend(lm: nn.Module) -> Bend:
    """Return what the model's own forward does to logits. Runs no layer of it, so it needs no weights.

    A forward that wants more of its body than hidden states is taken to do nothing; the proof at the start of a run
    compares the outcome with the model's own logits.

    Raises:
        ModelError: It changes hidden states before the output layer, or logits by more than a scale and a cap.
    """
    # Small ones tell the scale, the large the cap; float64, so that a tanh that rounds to 1 is no guess.
    probe_V = torch.cat([torch.linspace(-1e3, 1e3, _NUM_PROBED - 2), torch.tensor([1e-4, 1e12])]).double()
    hidden_BTH = torch.arange(-4, 2, dtype=torch.float64).reshape(1, 2, 3) / 2 + 0.25
    seen: list[Tensor] = []
    head = output_layer(lm)
    with (
        _answering(body_of(lm), lambda: _Hidden(hidden_BTH)),
        _answering(head, probe_V.expand(1, 2, -1).clone, seen),
    ):
        try:
            with torch.no_grad():
                bent = lm(input_ids=torch.zeros(1, 2, dtype=torch.long), use_cache=False).logits
        except (AttributeError, TypeError, ValueError, KeyError, IndexError, RuntimeError):
            return NO_BEND
    # Hidden states of another size come from a part of the body that is called by itself.
    if not seen or seen[0].shape[-1] != hidden_BTH.shape[-1] or bent.shape[-1] != len(probe_V):
        return NO_BEND
    ratio_H = seen[0].double().reshape(-1, 3)[-1] / hidden_BTH[0, -1]
    before = float(ratio_H[0])
    if not torch.allclose(ratio_H, ratio_H[:1], rtol=2.0**-8) or (before != 1.0 and head.bias is not None):
        raise ModelError(
            f"The output layer must get the hidden states as the body makes them, but {type(lm).__name__} changes them "
            "in between instead. This architecture is not supported yet."
        )
    bent_V = bent.reshape(-1, len(probe_V))[-1]
    found = _fitted(probe_V, bent_V.double())
    off = float((found.of(probe_V) - bent_V).abs().max() / bent_V.abs().max())
    if not off <= _CLOSE[bent_V.dtype is torch.float64]:
        raise ModelError(
            f"Logits must be the output layer's, scaled or under a soft cap, but {type(lm).__name__} does something "
            f"else to them instead (off by {off:.1e} of the largest). This architecture is not supported yet."
        )
    return Bend(found.scale * before, found.cap)


def _fitted(probe_V: Tensor, bent_V: Tensor) -> Bend:
    """Return the scale and the cap from the smallest and the largest probe."""
    scale, largest = float(bent_V[-2] / probe_V[-2]), float(bent_V[-1])
    if abs(largest) > 1e-3 * abs(scale) * float(probe_V[-1]):
        return Bend(largest / float(probe_V[-1]))
    return Bend(1.0 if abs(scale - 1.0) < _CLOSE[True] else scale, largest)


class _Hidden:
    """What a body answers with: hidden states, and nothing else that may be asked of it."""

    def __init__(self, hidden_BTH: Tensor) -> None:
        self.last_hidden_state = hidden_BTH

    def __getattr__(self, name: str) -> None:
        return None

    def __getitem__(self, place: int | slice) -> Any:
        return self.last_hidden_state if place == 0 else None if isinstance(place, int) else ()


@contextlib.contextmanager
def _answering(
    module: nn.Module, answer: Callable[[], Any], seen: list[Tensor] | None = None
) -> Iterator[None]:
    """Put an answer in the place of a module's forward, and note what it was given."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        if seen is not None:
            seen.append(args[0])
        return answer()

    module.forward = forward
    try:
        yield
    finally:
        del module.forward
