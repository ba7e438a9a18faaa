"""LoRA within its layer on a GPU, at widths of real layers, where other kernels run than on a CPU."""

from __future__ import annotations

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
NAMES = ("gate_proj", "up_proj")


def blocks() -> tuple[Any, Any]:
    """Return two frozen layers on one input with peft's adapters, and the same fused; bf16."""
    from peft import LoraConfig, inject_adapter_in_model

    from trainer.model.tune.adapters import ADAPTER
    from trainer.model.tune.lora import fuse_lora

    torch.manual_seed(0)
    block = torch.nn.ModuleDict({name: torch.nn.Linear(1024, 3072, bias=False) for name in NAMES})
    block = block.to("cuda", torch.bfloat16).requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=16, lora_alpha=32, target_modules=list(NAMES)), block, ADAPTER)
    for name, parameter in block.named_parameters():
        if ".lora_B" in name:
            parameter.data.normal_(std=0.05)
    fused = copy.deepcopy(block)
    assert fuse_lora(fused, ADAPTER) == 2
    return block, fused


def run(block: Any, x: Any, grads: list[Any]) -> list[Any]:
    x = x.clone().requires_grad_()
    outputs = [block[name](x) for name in NAMES]
    torch.autograd.backward(outputs, [grad.to(x.dtype) for grad in grads])
    trained = [p.grad for p in block.parameters() if p.requires_grad]
    return [*(output.detach() for output in outputs), x.grad, *trained]


def test_in_bf16_outputs_and_gradients_are_as_near_the_truth_as_those_of_peft():
    block, fused = blocks()
    x = torch.randn(1, 4096, 1024, device="cuda", dtype=torch.bfloat16)
    grads = [torch.randn(1, 4096, 3072, device="cuda", dtype=torch.bfloat16) for _ in NAMES]
    truth = run(copy.deepcopy(block).double(), x.double(), grads)
    ours, theirs = run(fused, x, grads), run(block, x, grads)
    for a, b, exact in zip(ours, theirs, truth, strict=True):
        off, their_off = (float((got.double() - exact).norm() / exact.norm()) for got in (a, b))
        assert off <= 1.05 * their_off and their_off < 0.01


def test_with_b_zero_the_output_is_the_base_to_the_bit():
    from trainer.model.tune.adapters import ADAPTER, adapter_off

    _, fused = blocks()
    x = torch.randn(1, 4096, 1024, device="cuda", dtype=torch.bfloat16)
    for name in NAMES:
        torch.nn.init.zeros_(fused[name].lora_B[ADAPTER].weight)
    for name in NAMES:
        with adapter_off(fused):
            off = fused[name](x)
        assert torch.equal(fused[name](x), off)
