"""What an adapter sits on: read from the model after peft has put it in, not from what was asked of peft.

peft writes `gate_proj`, `up_proj` and `down_proj` of mixtures of experts as parameters of the experts: it finds them
there, and no longer on dense and shared layers of the same names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from trainer.config.tune import TuneConfig
from trainer.errors import ConfigError
from trainer.model.tune.quantise import num_weights


def is_linear(module: nn.Module) -> bool:
    """Tell whether a module is a linear layer and nothing more, whole or in 4 bits; routers are made of them."""
    if not isinstance(module, nn.Linear):
        return False
    return type(module).forward is nn.Linear.forward or type(module).__module__.startswith("bitsandbytes.")


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


def refuse_moved(
    asked: Sequence[str], modules: Sequence[str], tensors: Sequence[str], tune: TuneConfig
) -> None:
    """Raise where peft put an adapter elsewhere than asked, unless tune.target names the kinds it moved.

    Raises:
        ConfigError: Layers that were asked for have no adapter.
    """
    lost = [name for name in asked if name not in set(modules)]
    kinds = {_last_word(name) for name in lost}
    if not lost or (tune.target_pattern is None and kinds <= set(tune.target)):
        return
    kept = sorted({_last_word(name) for name in modules})
    key, shown = (
        ("tune.target", tune.target) if tune.target_pattern is None else ("tune.target_pattern", "it")
    )
    raise ConfigError(
        f"`{key}` must name layers that peft adapts in this model, but {shown} has {counted_layers(lost)} without an "
        f"adapter instead: peft takes these names for tensors of its experts ({counted(tensors)}). Set "
        f"tune.target=[{','.join(kept)}] to leave both out, or "
        f"tune.target=[{','.join(sorted({*kept, *kinds}))}] to adapt the experts."
    )


def without_adapter(model: Any, only_experts: bool) -> tuple[tuple[str, int], ...]:
    """Return the name and size of every frozen matrix outside embeddings and head that has no factors.

    Args:
        only_experts: Look at tensors of several matrices only.
    """
    head = model.get_output_embeddings()
    modules, tensors = adapted(model)
    covered = {f"{name}.weight" for name in modules} | set(tensors)
    skipped = {
        id(p) for m in model.modules() if isinstance(m, nn.Embedding) or m is head for p in m.parameters()
    }
    found = []
    for name, parameter in model.named_parameters():
        plain = name.replace(".base_layer", "")
        is_matrix = len(getattr(parameter, "ds_shape", parameter.shape)) > (2 if only_experts else 1)
        if (
            is_matrix
            and not parameter.requires_grad
            and id(parameter) not in skipped
            and plain not in covered
        ):
            found.append((plain, num_weights(parameter)))
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


def _last_word(name: str) -> str:
    return name.rsplit(".", 1)[-1]
