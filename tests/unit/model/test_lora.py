"""The fused LoRA forward against peft's own layers: outputs, gradients, and what is left to peft."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch.utils.checkpoint import checkpoint

from trainer.model.tune.adapters import ADAPTER, adapter_off
from trainer.model.tune.lora import fuse_lora

NAMES = ["q_proj", "k_proj", "v_proj", "o_proj"]


class Block(nn.Module):
    """Three siblings on one input and a layer behind them, as in attention."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.q_proj = nn.Linear(24, 16, bias=bias)
        self.k_proj = nn.Linear(24, 8, bias=bias)
        self.v_proj = nn.Linear(24, 8, bias=bias)
        self.o_proj = nn.Linear(16, 24, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        return torch.as_tensor(self.o_proj(torch.tanh(q) * torch.cat([k, v], dim=-1)))


def adapted(dtype: torch.dtype = torch.float32, bias: bool = False, **options: Any) -> Block:
    """Return a frozen block with peft's adapters, whose B is not zero."""
    torch.manual_seed(0)
    block = Block(bias).to(dtype).requires_grad_(False)
    config = LoraConfig(r=4, lora_alpha=12, target_modules=NAMES, **options)
    inject_adapter_in_model(config, block, adapter_name=ADAPTER)
    for name, parameter in block.named_parameters():
        if ".lora_" in name:
            parameter.data = torch.randn_like(parameter, dtype=torch.float32).mul_(0.3).to(dtype)
    return block


def fused(block: Block) -> Block:
    other = copy.deepcopy(block)
    assert fuse_lora(other, ADAPTER) == 4
    return other


def run(block: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Return the output and the gradients of the input and of what trains."""
    torch.manual_seed(1)
    x = x.clone().requires_grad_()
    y = block(x)
    y.backward(torch.randn_like(y))
    assert x.grad is not None
    return [y.detach(), x.grad, *(p.grad for p in block.parameters() if p.grad is not None)]


def furthest(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    pairs = [(a.detach().double(), b.detach().double()) for a, b in zip(ours, theirs, strict=True)]
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rslora", [False, True])
def test_outputs_and_gradients_are_those_of_peft(bias, rslora):
    """Apart: a scale is forgotten or taken twice, or siblings are mixed up."""
    block = adapted(bias=bias, use_rslora=rslora)
    x = torch.randn(2, 5, 24)
    ours, theirs = run(fused(block), x), run(block, x)
    assert len(ours) == 2 + 2 * len(NAMES)
    assert furthest(ours, theirs) < 1e-6


def test_in_bf16_the_outputs_are_nearer_the_truth_than_those_of_peft():
    """Ours round the sum once where peft rounds the product, its scaling and the sum."""
    block = adapted(torch.bfloat16)
    x = torch.randn(64, 24, dtype=torch.bfloat16)
    truth = block.double().q_proj(x.double())
    block = block.to(torch.bfloat16)
    ours, theirs = fused(block).q_proj(x), block.q_proj(x)
    assert furthest([ours], [truth]) < furthest([theirs], [truth]) < 0.01


def test_with_b_zero_or_the_adapter_off_the_output_is_the_base_to_the_bit():
    block = fused(adapted(torch.bfloat16, bias=True))
    x = torch.randn(3, 7, 24, dtype=torch.bfloat16)
    with adapter_off(block):
        off = block(x)
    assert not torch.equal(block(x), off)
    for name in NAMES:
        nn.init.zeros_(block.get_submodule(name).lora_B[ADAPTER].weight)
    assert torch.equal(block(x), off)


def test_siblings_with_inputs_of_their_own_answer_for_their_own_input():
    """Wrong: what was kept for one input is given for another, as keys of a cross-attention would get."""
    block = adapted()
    ours = fused(block)
    x, other = torch.randn(2, 5, 24), torch.randn(2, 5, 24)
    for name, input in [("q_proj", x), ("k_proj", other), ("v_proj", x), ("q_proj", other), ("q_proj", x)]:
        assert furthest([ours.get_submodule(name)(input)], [block.get_submodule(name)(input)]) < 1e-6


def test_an_input_that_changes_between_siblings_is_computed_anew():
    """Wrong: what was kept for the input as it was, or without its gradient, is given for what it is now."""
    block = adapted()
    ours = fused(block)
    x = torch.randn(2, 5, 24)
    with torch.no_grad():
        ours.q_proj(x)
    assert ours.k_proj(x).requires_grad
    x.mul_(2)
    assert furthest([ours.v_proj(x)], [block.v_proj(x)]) < 1e-6


def test_a_layer_that_is_not_used_gets_no_gradient_and_changes_none():
    block = adapted()
    ours = fused(block)
    x = torch.randn(6, 24)
    for one in (block, ours):
        one.q_proj(x).sum().backward()
    for (name, a), b in zip(ours.named_parameters(), block.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        assert a.grad is None or furthest([a.grad], [b.grad]) < 1e-6


def test_recomputed_layers_give_the_same_gradients():
    block = fused(adapted())
    x = torch.randn(2, 5, 24)
    plain = run(block, x)
    block.zero_grad()

    class Recomputed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = block

        def forward(self, x: torch.Tensor) -> Any:
            return checkpoint(self.block, x, use_reentrant=False)

    again = run(Recomputed(), x)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_an_input_without_gradient_leaves_the_adapter_its_own():
    """The first layer of a model whose embeddings are frozen."""
    block = adapted()
    ours = fused(block)
    x = torch.randn(2, 5, 24)
    for one in (block, ours):
        one(x).sum().backward()
    grads = [[p.grad for p in one.parameters() if p.grad is not None] for one in (ours, block)]
    assert furthest(*grads) < 1e-6


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_dropout": 0.1}])
def test_what_is_another_function_is_left_to_peft(options):
    block = adapted(**options)
    assert fuse_lora(block, ADAPTER) == 0


def test_adapters_of_another_dtype_than_the_input_are_computed_by_peft():
    block = adapted(torch.bfloat16)
    for name, parameter in block.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()
    x = torch.randn(5, 24, dtype=torch.bfloat16)
    assert torch.equal(fused(block)(x), block(x))


def test_a_base_in_4_bits_gets_the_adapter_of_peft():
    pytest.importorskip("bitsandbytes")
    from trainer.model.tune.quantise import adopt, pack

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.o_proj = nn.Linear(64, 128, bias=False)

        def get_output_embeddings(self) -> None:
            return None

    model = Model()
    pack(model, torch.float32, is_sharded=False)
    adopt(model)
    model.requires_grad_(False)
    model.is_loaded_in_4bit = True  # type: ignore[assignment]
    inject_adapter_in_model(LoraConfig(r=4, target_modules=["o_proj"]), model, adapter_name=ADAPTER)
    layer: Any = model.o_proj
    layer.lora_A[ADAPTER].weight.data.normal_()
    layer.lora_B[ADAPTER].weight.data.normal_()
    x = torch.randn(6, 64)
    theirs = run(layer, x)
    layer.zero_grad()
    assert fuse_lora(model, ADAPTER) == 1
    assert furthest(run(layer, x), theirs) < 1e-6
