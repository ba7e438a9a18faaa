"""Activation checkpointing of all, some or no decoder layers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.config.model import ModelConfig, Remat
from trainer.errors import ModelError
from trainer.model.lean import causal_class
from trainer.model.meta import configs_of


def recomputes(found: Mapping[str, Any], model: ModelConfig) -> bool:
    """Tell whether transformers recomputes layers of a model; of one whose code comes with it that is not known: True.

    Args:
        found: Contents of its config.json; a name is not looked up for it.
    Raises:
        ModelError: It cannot be used.
    """
    local = Path(model.path).expanduser()
    _, trained = configs_of(found, str(local) if local.exists() else model.path, model)
    kind = causal_class(trained)
    return kind is None or bool(kind.supports_gradient_checkpointing)


def checkpointed_layers(num_layers: int, asked: int | None, spread: Remat) -> list[int]:
    """Return the indices of the layers that are recomputed in backward."""
    count = num_layers if asked is None or asked < 0 else min(asked, num_layers)
    if count == 0:
        return []
    if spread is Remat.first:
        return list(range(count))
    return sorted({int(i * num_layers / count) for i in range(count)})


def apply_remat(model: Any, asked: int | None, spread: Remat, has_prefix: bool = False) -> list[int]:
    """Switch non-reentrant checkpointing on for the chosen decoder layers.

    Non-reentrant: works with ZeRO-3 and frozen parameters (DeepSpeed #8148, since 0.19.4).

    Args:
        has_prefix: Keys and values of virtual tokens come to the layers as a cache, which transformers drops from a
            recomputed layer unless told that it may be read twice; ours may, it keeps nothing.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    chosen = checkpointed_layers(len(layers), asked, spread)
    if asked != 0 and not layers:
        raise ModelError(
            f"`model.checkpoint_layers` must be 0 for {type(model).__name__}, which has no "
            f"checkpointable layers, but is {asked} instead."
        )
    if not chosen:
        return []
    if not model.supports_gradient_checkpointing:
        raise ModelError(
            f"`model.checkpoint_layers` must be 0 for {type(model).__name__}, whose layers transformers does not "
            f"recompute, but is {asked} instead. Set model.checkpoint_layers=0."
        )
    if has_prefix and not hasattr(GradientCheckpointingLayer, "_can_checkpoint_with_cache"):
        raise ModelError(
            f"`model.checkpoint_layers` must be 0 for tune.method=prefix with this transformers, but is {asked} "
            "instead: it would drop the prefix. Set model.checkpoint_layers=0, or install transformers 5.23."
        )
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for index, layer in enumerate(layers):
        layer.gradient_checkpointing = index in chosen
        if has_prefix:
            layer._can_checkpoint_with_cache = True
    return chosen
