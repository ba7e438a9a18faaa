"""LoRA on the experts of a layer, added into the one tensor that holds them all.

peft wraps a module once for each adapted tensor of it, one wrapper in another, so that the names of the factors tell
no tensor. Which is which is read from a model without memory, into which peft puts the same adapter.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainer.model.experts import expert_tensors
from trainer.model.tune.adapters import ADAPTER


@dataclass(frozen=True, slots=True)
class Place:
    """Where the factors of a tensor of experts are."""

    module: str
    """What their names begin with."""
    parameter: str
    is_transposed: bool
    """The tensor is [experts, in, out]."""


def has_experts(peft_config: Any, trained: dict[str, Tensor]) -> bool:
    """Tell whether factors of several experts are among the tensors of an adapter: they have rows for each."""
    if not getattr(peft_config, "target_parameters", None):
        return False
    return any(".lora_A." in name and len(tensor) > peft_config.r for name, tensor in trained.items())


def expert_places(source: str, peft_config: Any) -> dict[str, Place]:
    """Return where the factors of each adapted tensor of experts are, by the tensor's name."""
    from peft import inject_adapter_in_model
    from peft.tuners.lora.layer import ParamWrapper
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source).get_text_config())
        alone = copy.deepcopy(peft_config)
        alone.target_parameters = [n for n in expert_tensors(model) if n in peft_config.target_parameters]
        alone.target_modules, alone.modules_to_save, alone.trainable_token_indices = [], None, None
        inject_adapter_in_model(alone, model, adapter_name=ADAPTER)
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, ParamWrapper):
            owner = re.sub(r"(\.base_layer)+$", "", name)
            is_transposed = bool(getattr(module.get_base_layer(), "is_transposed", False))
            found[f"{owner}.{module.parameter_name}"] = Place(name, module.parameter_name, is_transposed)
    return found


def add_experts(weight: Tensor, part: dict[str, Tensor], place: Place, peft_config: Any) -> Tensor:
    """Return a tensor of experts with its adapter merged by peft, float32."""
    from peft import inject_adapter_in_model

    experts: Any = nn.Module()
    experts.is_transposed = place.is_transposed
    experts.register_parameter(place.parameter, nn.Parameter(weight.float(), requires_grad=False))
    alone = copy.deepcopy(peft_config)
    alone.target_modules, alone.modules_to_save, alone.trainable_token_indices = [], None, None
    alone.target_parameters = [f"experts.{place.parameter}"]
    holder = inject_adapter_in_model(alone, nn.ModuleDict({"experts": experts}), adapter_name=ADAPTER)
    layer: Any = holder["experts"]
    missing, unexpected = layer.load_state_dict({n: t.float() for n, t in part.items()}, strict=False)
    assert not unexpected and all("base_layer" in name for name in missing), (missing, unexpected)
    layer.merge()
    return torch.as_tensor(layer.get_param().detach())
