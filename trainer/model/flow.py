"""What flows through a model's parts in one pass, so that gradients can be asked for there and not of parameters.

Shapes: B rows, T sequence, H hidden.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from trainer.model.experts import size_of
from trainer.model.scorer import output_layer

EMBEDDINGS, HEAD = "the input embeddings", "the output layer"
MOST_NUMBERS = 2**22
"""Numbers of an early parameter whose gradient is made: 16 MB in float32."""


@contextlib.contextmanager
def watching(model: nn.Module, moved: float = 0.0) -> Iterator[dict[str, Tensor]]:
    """Note what the input embeddings give and what each layer and the output layer take, in the order of a pass.

    What the embeddings give becomes a leaf: it has a gradient though all parameters be frozen, and nothing flows on
    into them. A layer that runs again in the backward pass is noted once.

    Args:
        moved: Share by which numbers that the embeddings give are moved, up or down by a fixed pattern.
    """
    lm, seen = cast(Any, model), cast(dict[str, Tensor], {})

    def leaf(module: nn.Module, args: Any, given_BTH: Tensor) -> Tensor:
        if EMBEDDINGS in seen:
            return given_BTH
        seen[EMBEDDINGS] = _shaken(given_BTH.detach(), moved).requires_grad_()
        return seen[EMBEDDINGS].clone()  # some bodies scale it in place, which no leaf allows

    def before(name: str) -> Any:
        def note(module: nn.Module, args: Any, kwargs: Any) -> None:
            found = (t for t in (*args, *kwargs.values()) if isinstance(t, Tensor) and t.requires_grad)
            if name not in seen and (taken := next(found, None)) is not None:
                seen[name] = taken

        return note

    hooks = [lm.get_input_embeddings().register_forward_hook(leaf)]
    for name, module in [*layers(model).items(), (HEAD, output_layer(lm))]:
        hooks.append(module.register_forward_pre_hook(before(name), with_kwargs=True))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def shaking(model: nn.Module) -> Iterator[None]:
    """Move what the embeddings of a CausalLM give by one unit in the last place: every later operation rounds anew."""

    def moved(module: nn.Module, args: Any, given_BTH: Tensor) -> Tensor:
        return _shaken(given_BTH, torch.finfo(given_BTH.dtype).eps)

    hook = cast(Any, model).lm.get_input_embeddings().register_forward_hook(moved)
    try:
        yield
    finally:
        hook.remove()


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that transformers can recompute, by name."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return {name: m for name, m in model.named_modules() if isinstance(m, GradientCheckpointingLayer)}


@contextlib.contextmanager
def recomputing(model: nn.Module) -> Iterator[int]:
    """Let layers of a model in evaluation recompute as in training; gives how many do. Their parts stay as they are."""
    found = [layer for layer in layers(model).values() if getattr(layer, "gradient_checkpointing", False)]
    before = [layer.training for layer in found]
    for layer in found:
        layer.training = True
    try:
        yield len(found)
    finally:
        for layer, was in zip(found, before, strict=True):
            layer.training = was


def early_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return what trains of the first layer in which anything does, but large matrices."""
    for name, layer in layers(model).items():
        found = {
            f"{name}.{key}": parameter
            for key, parameter in layer.named_parameters()
            if parameter.requires_grad and torch.Size(size_of(parameter)).numel() <= MOST_NUMBERS
        }
        if found:
            return found
    return {}


def _shaken(given: Tensor, moved: float) -> Tensor:
    if not moved:
        return given
    signs = torch.randint(0, 2, given.shape, generator=torch.Generator().manual_seed(0)).mul_(2).sub_(1)
    return given * (1 + moved * signs.to(given.device, given.dtype))
