"""Layers that call methods of their parts are found by their code."""

import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from tests.helpers.families import FAMILIES
from tests.helpers.tiny_families import tiny_config
from trainer.model.calling import calling_parts, looping_parts


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("Gemma 3n, language model", ["Gemma3nTextDecoderLayer"]),
        ("JetMoE", ["JetMoeAttention"]),
        ("Llama 3", []),
        ("GLM-4.5", []),
        ("Mamba-2", []),
    ],
)
def test_layers_of_known_families_that_call_so_are_found(family, names):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_config(FAMILIES[family]))
    assert [kind.__name__ for kind in calling_parts(model)] == names


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("Qwen4-Exp, language model", ["Qwen4ExpTextQSAIndexer"]),
        ("Inkling 2 loop, language model", []),  # layers, several times
        ("DeepSeek-V3.2", []),
    ],
)
def test_a_layer_that_calls_its_parts_as_often_as_its_tokens_ask_is_found(family, names):
    if FAMILIES[family].model_type not in CONFIG_MAPPING:
        pytest.skip("this transformers does not have the family")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_config(FAMILIES[family]))
    assert [kind.__name__ for kind in looping_parts(model)] == names


class Part(nn.Module):
    def __init__(self, num):
        super().__init__()
        self.weights = nn.ParameterList(torch.zeros(1) for _ in range(num))

    def turned(self, x):
        return -x


class Layer(nn.Module):
    def __init__(self, num):
        super().__init__()
        self.part = Part(num)

    def forward(self, x):
        return self.part.turned(x)


class Plain(Layer):
    def forward(self, x):
        return self.part.to("cpu")(x)


def test_a_part_without_parameters_and_methods_that_all_modules_have_do_not_count():
    assert calling_parts(nn.Sequential(Layer(1), Layer(1))) == [Layer]
    assert calling_parts(nn.Sequential(Layer(0))) == []
    assert calling_parts(nn.Sequential(Plain(1))) == []
