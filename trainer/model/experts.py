"""Mixtures of experts, read from the loaded model: what holds experts, what a token is multiplied with, who is chosen.

Which experts tokens are sent to while a model trains is counted in expert_load.py.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

ADDED = re.compile(r"\.(lora_|ia3_)")
"""Parameters that an adapter adds."""


def expert_tensors(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that hold several matrices in one, [experts, a, b], by name.

    None of a model whose configuration has no word of experts: gates and others are held so too (RecurrentGemma).
    """
    config: Any = getattr(model, "config", None)
    if hasattr(config, "to_dict") and not re.search("expert|moe", " ".join(_keys(config.to_dict()))):
        return {}
    convolution = nn.modules.conv._ConvNd
    return {
        f"{name}.{key}": parameter
        for name, module in model.named_modules()
        if name and not isinstance(module, convolution)
        for key, parameter in module.named_parameters(recurse=False)
        if len(size_of(parameter)) == 3
    }


def _keys(options: dict[Any, Any]) -> Iterator[str]:
    """Yield the keys of a configuration and of its parts."""
    for key, value in options.items():
        yield str(key)
        if isinstance(value, dict):
            yield from _keys(value)


def size_of(parameter: Any) -> tuple[int, ...]:
    """Return the shape of a parameter: packed, sharded or plain; of one rank's part of experts, that of all of them."""
    whole = getattr(parameter, "whole_shape", None)
    if whole is not None:
        return tuple(whole)
    state = getattr(parameter, "quant_state", None)
    return tuple(getattr(parameter, "ds_shape", parameter.shape) if state is None else state.shape)


def num_chosen(config: Any) -> int | None:
    """Return how many experts a token goes to beside shared ones; None where the configuration does not say."""
    text = config.get_text_config()
    for key in ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts"):
        value = getattr(text, key, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


@dataclass(frozen=True, slots=True)
class Counts:
    """Weights of a model without what an adapter added; biases and norms are left out of the products."""

    num_matmul: int
    """Those a token is multiplied with: the head in, the embedding out, experts in the share it goes to."""
    num_experts: int
    """All weights of experts."""
    num_idle: int
    """Those of them that a token does not go to."""


def count_weights(model: Any) -> Counts:
    """Count the weights of a loaded model by what a token does with them.

    Where the configuration does not say how many experts a token goes to, it goes to all.
    """
    chosen = num_chosen(model.config)
    experts = {id(parameter): size_of(parameter) for parameter in expert_tensors(model).values()}
    matmul = num_experts = idle = 0
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            continue
        for key, parameter in module.named_parameters(recurse=False):
            shape = size_of(parameter)
            if len(shape) < 2 or ADDED.search(f".{name}.{key}"):
                continue
            size = torch.Size(shape).numel()
            matmul += size
            if id(parameter) in experts:
                num_experts += size
                idle += 0 if chosen is None else size // shape[0] * max(shape[0] - chosen, 0)
    return Counts(matmul - idle, num_experts, idle)


def describe_mixture(
    model: Any, dtype: str, is_packed: bool, bias_rate: float = 0.0, num_exact: int = 0
) -> list[str]:
    """Return what a person should know of a mixture; nothing of a dense model. To be asked before anything is frozen.

    Args:
        dtype: What is computed in, `bf16` or `fp32`.
        is_packed: The linear layers are in 4 bits.
        num_exact: Of the routers, how many compute in float32 though the rest is bf16.
        bias_rate: By how much tensors that steer the choice of experts move a step; 0: they stay.
    """
    tensors = expert_tensors(model)
    if not tensors:
        return []
    counts, chosen = count_weights(model), num_chosen(model.config)
    numbers = sorted({size_of(parameter)[0] for parameter in tensors.values()})
    shown = f"{chosen} of" if chosen else "an unknown number of the"
    lines = [
        f"Mixture of experts: a token goes to {shown} {' or '.join(map(str, numbers))} experts of a layer; "
        f"{counts.num_experts:,} parameters are experts, {counts.num_experts - counts.num_idle:,} of them active."
    ]
    lines.append(_router_loss_line(model.config))
    if dtype == "bf16":
        lines.append(_router_line(num_exact))
    if is_packed:
        size = counts.num_experts * (2 if dtype == "bf16" else 4)
        lines.append(
            f"The experts are no linear layers and stay in {dtype}: {size / 1e9:.4g} GB in all, beside the base in NF4."
        )
    exact = kept_in_float32(model)
    if exact and dtype == "bf16":
        lines.append(
            f"{len(exact)} weights that transformers keeps in float32 ({_kinds(exact)}) are bf16 in the forward pass, "
            "because DeepSpeed holds parameters in one dtype: each is off by at most 0.2 %. The optimizer's copies of "
            "those that train are float32."
        )
    biases = choice_biases(model)
    if biases:
        lines.append(
            f"{len(biases)} tensors that steer the choice of experts have no gradient ({_kinds(biases)}): "
            + (
                f"after each step they move by {bias_rate:g} towards experts that got fewer tokens than the mean."
                if bias_rate
                else "they stay as they are in the base, and nothing evens out the use of experts by them "
                "(train.router_bias_rate)."
            )
        )
    return lines


def _router_line(num_exact: int) -> str:
    if num_exact:
        what = f"Routers that multiply, score and choose in float32, with weights in bf16: {num_exact}"
    else:
        what = "Routers compute as the model's own code does, in bf16 where that says nothing else"
    return f"{what} (model.router_float32)."


def _router_loss_line(config: Any) -> str:
    text = config.get_text_config()
    weight, is_on = (getattr(text, key, None) for key in ("router_aux_loss_coef", "output_router_logits"))
    if weight and is_on:
        return f"The loss includes {weight:g} times the routers' own loss, as output_router_logits of config.json says."
    return "No loss evens out the use of experts: the model's config.json has none" + (
        " switched on (output_router_logits is false)." if weight else "."
    )


def kept_in_float32(model: Any) -> list[str]:
    """Return the parameters that transformers keeps in float32 whatever the model's dtype, by its own list of names."""
    words = [word.replace("*", ".*") for word in getattr(model, "_keep_in_fp32_modules_strict", None) or ()]
    found = re.compile("|".join(words)) if words else None
    return [name for name, _ in model.named_parameters() if found and found.search(name)]


def choice_biases(model: nn.Module) -> list[str]:
    """Return the saved tensors of one number an expert that no gradient reaches: buffers, and frozen from the start."""
    sizes = {size_of(parameter)[0] for parameter in expert_tensors(model).values()}
    found = []
    for name, module in model.named_modules():
        saved = module.named_buffers(recurse=False)
        fixed = [(key, b) for key, b in saved if key not in module._non_persistent_buffers_set]
        fixed += [(key, p) for key, p in module.named_parameters(recurse=False) if key.endswith("bias")]
        for key, tensor in fixed:
            shape = size_of(tensor)
            is_one_each = shape[-1:] and shape[-1] in sizes and torch.Size(shape).numel() == shape[-1]
            if is_one_each and tensor.is_floating_point() and not tensor.requires_grad:
                found.append(f"{name}.{key}")
    return found


def _kinds(names: list[str]) -> str:
    kinds = Counter(".".join(name.replace(".base_layer", "").split(".")[-2:]) for name in names)
    return ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
