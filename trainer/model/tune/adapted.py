"""What an adapter sits on: read from the model after peft has put it in, not from what was asked of peft."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from torch import nn

from trainer.errors import ConfigError
from trainer.model.experts import expert_tensors, size_of
from trainer.model.scorer import output_layer
from trainer.model.tune.quantise import held_tensors, num_weights

_FACTOR = re.compile(r"\.lora_(embedding_)?[AB]\.")


def adapted(model: nn.Module) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the layers and of the parameters of experts that LoRA's factors sit on."""
    from peft.tuners.lora.layer import LoraLayer, ParamWrapper

    modules, tensors = [], []
    for name, module in model.named_modules():
        if isinstance(module, ParamWrapper):
            owner = re.sub(r"(\.base_layer)+$", "", name)
            tensors.append(f"{owner}.{module.parameter_name}")
        elif isinstance(module, LoraLayer):
            modules.append(name)
    return tuple(modules), tuple(tensors)


def loud_factors(model: nn.Module) -> dict[str, bool]:
    """Return by the names of LoRA's factors whether any number of what this rank holds of them is not 0."""
    return {
        name: any(bool(held.count_nonzero()) for held in held_tensors(parameter))
        for name, parameter in model.named_parameters()
        if _FACTOR.search(name)
    }


def refuse_others(
    names: Iterable[str], experts: Iterable[str], modules: Iterable[str], tensors: Iterable[str]
) -> None:
    """Raise where peft put an adapter elsewhere than asked.

    Raises:
        ConfigError: Layers or tensors have one without being asked for, or have none.
    """
    asked, done = {*names, *experts}, {*modules, *tensors}
    if asked == done:
        return
    lost, more = sorted(asked - done), sorted(done - asked)
    raise ConfigError(
        f"`tune.target` must be what peft adapts, but it passes by {', '.join(lost[:3]) or 'nothing'} and adds "
        f"{', '.join(more[:3]) or 'nothing'} instead. Name other layers, or report this model with the version of peft."
    )


def without_adapter(model: Any, only_experts: bool) -> tuple[tuple[str, int, bool], ...]:
    """Return name, size and whether it is of experts of every frozen matrix without factors, but embeddings and head.

    Args:
        only_experts: Look at them only.
    """
    head = output_layer(model)
    modules, tensors = adapted(model)
    covered = {f"{name}.weight" for name in modules} | set(tensors)
    skipped = {
        id(p) for m in model.modules() if isinstance(m, nn.Embedding) or m is head for p in m.parameters()
    }
    experts = {id(parameter) for parameter in expert_tensors(model).values()}
    found = []
    for name, parameter in model.named_parameters():
        plain = name.replace(".base_layer", "")
        is_matrix = len(size_of(parameter)) > 1
        if (
            (id(parameter) in experts if only_experts else is_matrix)
            and not parameter.requires_grad
            and id(parameter) not in skipped
            and plain not in covered
        ):
            found.append((plain, num_weights(parameter), id(parameter) in experts))
    return tuple(found)


def counted(parameters: Iterable[str]) -> str:
    """Return the kinds of parameters with their counts, such as `down_proj 2, experts.down_proj 1`."""
    counts = Counter(_kind(name) for name in parameters)
    return ", ".join(f"{kind} {count}" for kind, count in sorted(counts.items())) or "none"


def counted_layers(modules: Iterable[str]) -> str:
    """Return the kinds of layers with their counts."""
    return counted(f"{name}.weight" for name in modules)


def _kind(parameter: str) -> str:
    words = parameter.split(".")
    return words[-2] if words[-1] in ("weight", "bias") and len(words) > 1 else ".".join(words[-2:])
