"""Parts of a mixture that tokens choose: what holds experts, in one tensor each or in a list of modules.

What runs in them differs between ranks: one whose tokens miss an expert does not call it, and one whose tokens all go
to experts without weights (LongCat-Flash) calls none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import nn

from trainer.model.experts import expert_tensors

_COUNT = re.compile(r"(^|_)(num|n)_((?!shared)\w+_)?experts$")
"""Keys of a configuration that say how many experts a layer has."""
_BASE = "base_layer"
"""The part of an adapter's layer that is what it sits on."""


def holders_of_experts(model: nn.Module) -> list[nn.Module]:
    """Return the modules of a causal model that hold tensors of experts [experts, a, b], and adapters around them.

    What is around something comes before it.
    """
    found: dict[str, None] = {}
    for name in expert_tensors(model):
        holder = name.rpartition(".")[0]
        around = [holder]
        while around[0].endswith(f".{_BASE}"):
            around.insert(0, around[0].removesuffix(f".{_BASE}"))
        found |= dict.fromkeys(around)
    return [model.get_submodule(name) for name in found]


def own_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of a module that train, without those of what it is an adapter around."""
    base = module._modules.get(_BASE)
    inner = set() if base is None else {id(parameter) for parameter in base.parameters()}
    return [p for p in module.parameters() if p.requires_grad and id(p) not in inner]


def owners_of_lists(model: nn.Module) -> list[nn.Module]:
    """Return the modules of a causal model that choose among a list of modules, as code that comes with a model may do.

    A list is one of experts that has as many as the configuration says there are, and no other experts in it.
    """
    config: Any = getattr(model, "config", None)
    counts = set(_counts(config.to_dict())) if hasattr(config, "to_dict") else set()
    inner = {id(holder) for holder in holders_of_experts(model)} if counts else set()
    found = []
    for module in reversed(list(model.modules())):  # a part comes after what it is a part of
        for part in module._modules.values():
            if not isinstance(part, nn.ModuleList | nn.ModuleDict) or len(part) not in counts:
                continue
            has_weights = next(part.parameters(), None) is not None
            if has_weights and not any(id(one) in inner for one in part.modules()):
                inner.add(id(module))
                found.append(module)
                break
    return found[::-1]


def _counts(options: dict[Any, Any]) -> Iterator[int]:
    for key, value in options.items():
        if isinstance(value, dict):
            yield from _counts(value)
        elif _COUNT.search(str(key)):
            values = value if isinstance(value, list | tuple) else [value]
            yield from (count for count in values if isinstance(count, int) and count > 1)
