"""Several LoRA adapters of one base as one adapter, by peft's weighted combination.

Layer by layer, on the CPU and without the base's weights: peft combines what it finds on a layer, whatever that is.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from trainer.config.train import Combination
from trainer.errors import ModelError, SelfCheckError
from trainer.export.merge import PEFT_PREFIX, WEIGHTS, read_adapter
from trainer.model.tune.adapters import ADAPTER
from trainer.model.tune.expert_places import has_experts

TOLERANCE = 1e-4
"""Relative; of a concatenation in float32 against the weighted sum of what the adapters do to a random input."""


@dataclass(slots=True)
class Adapter:
    """A trained LoRA adapter."""

    name: str
    tensors: dict[str, Tensor]
    """By the model's names, such as model.layers.0.self_attn.q_proj.lora_A.default.weight."""
    config: Any
    """peft's description."""


def read_folder(folder: Path) -> Adapter:
    """Return the adapter of a folder in peft's format.

    Raises:
        ModelError: It is none.
    """
    config = read_adapter(folder)
    if config is None or not (folder / WEIGHTS).is_file():
        raise ModelError(
            f"`export.adapters` must name run directories or folders with adapter_config.json and {WEIGHTS}, but "
            f"{folder} is neither. Export the adapter first."
        )
    tensors = {}
    for name, tensor in load_file(str(folder / WEIGHTS)).items():
        bare = name.removeprefix(PEFT_PREFIX)
        tensors[bare.replace(".weight", f".{ADAPTER}.weight") if ".lora_" in bare else bare] = tensor
    return Adapter(str(folder), tensors, config)


def check_combinable(adapters: Sequence[Adapter]) -> None:
    """Refuse adapters whose effect on a layer is not two factors and a scale.

    Raises:
        ModelError: One of them, with what is in its way.
    """
    for adapter in adapters:
        others = sorted(name for name in adapter.tensors if ".lora_A." not in name and ".lora_B." not in name)
        patterns = [name for name in ("rank_pattern", "alpha_pattern") if getattr(adapter.config, name, None)]
        if not others and not patterns and has_experts(adapter.config, adapter.tensors):
            patterns = ["factors of experts, a rank for each"]
        if getattr(adapter.config, "peft_type", None) != "LORA" or others or patterns:
            found = f"holds {others[0]}" if others else f"has {(patterns or ['another method'])[0]}"
            raise ModelError(
                f"`export.adapters` must be plain LoRA adapters, but {adapter.name} {found} instead. Merge it alone "
                "with export.merge=true."
            )


def combined(
    adapters: Sequence[Adapter], weights: Sequence[float], how: Combination, density: float
) -> tuple[dict[str, Tensor], Any]:
    """Return the tensors of the combination, by the model's names and in float32, and its description.

    A layer that only some adapters change is changed by those alone.

    Raises:
        ModelError: peft refuses them, for example because of different ranks.
        SelfCheckError: A concatenation is not the weighted sum.
    """
    check_combinable(adapters)
    modules = sorted({name.partition(".lora_")[0] for adapter in adapters for name in adapter.tensors})
    tensors: dict[str, Tensor] = {}
    described: Any = None
    for module in modules:
        made, described = _combine_layer(module, adapters, weights, how, density)
        tensors |= {f"{module}.{name}": tensor for name, tensor in made.items()}
    config = _described(adapters[0])
    config.r, config.lora_alpha = described.r, described.lora_alpha
    config.target_modules, config.target_parameters = _named(modules, adapters)
    return tensors, config


def _named(modules: Sequence[str], adapters: Sequence[Adapter]) -> tuple[list[str], list[str] | None]:
    """Return by which names peft finds the layers: as modules, or as parameters where an adapter has them so."""
    parameters = sorted(
        {name for a in adapters for name in getattr(a.config, "target_parameters", None) or ()}
    )
    return [name for name in modules if f"{name}.weight" not in parameters], parameters or None


def _described(adapter: Adapter) -> Any:
    """Return a copy of an adapter's description without rsLoRA, whose scale peft would give to the combination too."""
    config = copy.deepcopy(adapter.config)
    if config.use_rslora:
        config.lora_alpha, config.use_rslora = config.lora_alpha * math.sqrt(config.r), False
    return config


def _combine_layer(
    module: str, adapters: Sequence[Adapter], weights: Sequence[float], how: Combination, density: float
) -> tuple[dict[str, Tensor], Any]:
    """Return lora_A and lora_B of one layer."""
    from peft.tuners.lora import LoraModel

    factors = [_factors(module, adapter) for adapter in adapters]
    down, up = next(found for found in factors if found is not None)
    # Its values are never read.
    linear = nn.Linear(down.shape[1], up.shape[0], bias=False, device="meta").to_empty(device="cpu")
    names = [f"adapter{index}" for index in range(len(adapters))]
    tuner: Any = None
    for name, adapter, found in zip(names, adapters, factors, strict=True):
        config = _described(adapter)
        config.target_modules, config.modules_to_save, config.inference_mode = {"layer"}, None, True
        config.lora_dropout, config.target_parameters = 0.0, None
        if tuner is None:
            tuner = LoraModel(nn.ModuleDict({"layer": linear}), config, name)
        else:
            tuner.peft_config[name] = config
            tuner.inject_adapter(tuner.model, name)
        _fill(tuner.model["layer"], name, found)
    is_exact = how in (Combination.cat, Combination.linear, Combination.svd)
    options = {} if is_exact else {"density": density}
    try:
        tuner.add_weighted_adapter(names, list(weights), ADAPTER, combination_type=how.value, **options)
    except ValueError as error:
        raise ModelError(
            f"`export.combination` must be one that peft can do with these adapters, but is {how.value} instead: "
            f"{error} Set cat."
        ) from None
    layer = tuner.model["layer"]
    if how is Combination.cat:
        _check_sum(module, layer, names, weights)
    made = {
        f"lora_{side}.{ADAPTER}.weight": getattr(layer, f"lora_{side}")[ADAPTER].weight.detach().clone()
        for side in "AB"
    }
    return made, tuner.peft_config[ADAPTER]


def _factors(module: str, adapter: Adapter) -> tuple[Tensor, Tensor] | None:
    """Return (A of shape (r, in), B of shape (out, r)) of a layer; None where the adapter leaves it alone."""
    first = adapter.tensors.get(f"{module}.lora_A.{ADAPTER}.weight")
    second = adapter.tensors.get(f"{module}.lora_B.{ADAPTER}.weight")
    return None if first is None or second is None else (first.float(), second.float())


def _fill(layer: Any, name: str, factors: tuple[Tensor, Tensor] | None) -> None:
    """Give a layer an adapter's factors, or none of its effect."""
    with torch.no_grad():
        for side, index in (("A", 0), ("B", 1)):
            weight = getattr(layer, f"lora_{side}")[name].weight
            if factors is None:
                weight.zero_()
            else:
                weight.copy_(factors[index])


def _check_sum(module: str, layer: Any, names: Sequence[str], weights: Sequence[float]) -> None:
    """Compare what the combination and the adapters do to a random input."""

    def change(name: str, x_N: Tensor) -> Tensor:
        up, down = layer.lora_B[name].weight, layer.lora_A[name].weight
        return torch.as_tensor(layer.scaling[name] * (up @ (down @ x_N)))

    with torch.no_grad():
        x_N = torch.randn(layer.in_features, generator=torch.Generator().manual_seed(0))
        parts = [weight * change(name, x_N) for name, weight in zip(names, weights, strict=True)]
        expected_N = torch.stack(parts).sum(dim=0)
        scale = torch.stack(parts).norm()
        moved = float((change(ADAPTER, x_N) - expected_N).norm() / scale.clamp_min(1e-30))
    if not moved <= TOLERANCE:
        raise SelfCheckError(
            f"The combination must change {module} as the weighted sum of the adapters does, but differs by "
            f"{moved:.1e} of it. Report this with the versions of torch and peft."
        )
