"""What holds experts is found in mixtures of transformers, under adapters, and in lists of modules."""

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers import AutoModelForCausalLM

from tests.helpers.families import FAMILIES
from tests.helpers.tiny_families import tiny_config
from trainer.model.choosing import holders_of_experts, own_parameters, owners_of_lists


def built(family):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(tiny_config(FAMILIES[family]))


@pytest.mark.parametrize(
    ("family", "name"),
    [("LongCat-Flash", "LongcatFlashExperts"), ("Llama 3", None), ("RecurrentGemma", None)],
)
def test_what_holds_tensors_of_experts_is_found(family, name):
    model = built(family)
    assert {type(holder).__name__ for holder in holders_of_experts(model)} == ({name} if name else set())
    assert owners_of_lists(model) == []  # its layers are as many as some of its counts


def test_an_adapter_of_experts_holds_its_factors_and_what_is_in_it_its_tensors():
    model = built("LongCat-Flash")
    name = next(n for n, p in model.named_parameters() if n.endswith("experts.gate_up_proj"))
    owner = name.rpartition(".")[0]
    tensors = [name, f"{owner}.down_proj"]
    inject_adapter_in_model(LoraConfig(r=2, target_modules=[], target_parameters=tensors), model)
    first, second, last = holders_of_experts(model)
    assert first.base_layer is second and second.base_layer is last
    shapes = [[tuple(p.shape) for p in own_parameters(holder)] for holder in (first, second, last)]
    assert [len(own) for own in shapes] == [2, 2, 0] and shapes[0] != shapes[1]  # the base is frozen


class Block(nn.Module):
    def __init__(self, names):
        super().__init__()
        self.experts = nn.ModuleDict({name: nn.Linear(2, 2) for name in names})
        self.shared = nn.ModuleList([nn.Linear(2, 2)])


def test_a_list_with_as_many_modules_as_there_are_experts_is_one_and_the_stack_around_it_is_not():
    model = nn.Module()
    model.layers = nn.ModuleList(Block("abc") for _ in range(3))
    counts = {"text_config": {"moe_num_experts": [3, 3], "num_shared_experts": 1}, "num_experts_per_tok": 2}
    model.config = SimpleNamespace(to_dict=lambda: counts)
    assert owners_of_lists(model) == list(model.layers)
    model.config = SimpleNamespace(to_dict=lambda: {"num_hidden_layers": 3})
    assert owners_of_lists(model) == []
