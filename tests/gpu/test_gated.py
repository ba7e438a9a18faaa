"""Kernels of a gated MLP with LoRA and of weights in 4 bits, on a GPU, against the plain ways."""

from __future__ import annotations

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def mlps(rank: int, width: int, dtype: Any) -> tuple[Any, Any]:
    """Return a Llama MLP with adapters, its layers fused one by one, and the same in one."""
    from peft import LoraConfig, inject_adapter_in_model
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaMLP

    from trainer.model.tune.adapters import ADAPTER
    from trainer.model.tune.gated import NAMES, fuse_gated
    from trainer.model.tune.lora import fuse_lora

    torch.manual_seed(0)
    mlp = LlamaMLP(LlamaConfig(hidden_size=256, intermediate_size=width)).to("cuda", dtype)
    mlp.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=32, target_modules=list(NAMES)), mlp, ADAPTER)
    for name, parameter in mlp.named_parameters():
        if ".lora_B" in name:
            parameter.data.normal_(std=0.05)
    other = copy.deepcopy(mlp)
    for each in (mlp, other):
        assert fuse_lora(each, ADAPTER) == 3
    assert fuse_gated(other, ADAPTER) == 1
    return mlp, other


def run(mlp: Any, x: Any, grad: Any) -> list[Any]:
    x = x.clone().requires_grad_()
    y = mlp(x)
    y.backward(grad.to(y.dtype))
    return [y.detach(), x.grad, *(p.grad for p in mlp.parameters() if p.requires_grad)]


@pytest.mark.parametrize(("rank", "width"), [(4, 300), (16, 1024), (24, 1000), (32, 768)])
@pytest.mark.parametrize("rows", [1, 700, 1537])
def test_in_float32_a_gated_mlp_in_one_is_its_layers_one_by_one(rank: int, width: int, rows: int) -> None:
    """A failure points at a mask of the kernels, or at a sum of parts."""
    plain, ours = mlps(rank, width, torch.float32)
    x, grad = torch.randn(2, rows, 256, device="cuda").unbind()
    for a, b in zip(run(ours, x, grad), run(plain, x, grad), strict=True):
        assert float((a - b).norm() / b.norm()) < 1e-5


def test_in_bf16_outputs_and_gradients_are_as_near_the_truth_and_repeat_to_the_bit() -> None:
    plain, ours = mlps(16, 3072, torch.bfloat16)
    x, grad = torch.randn(2, 4096, 256, device="cuda", dtype=torch.bfloat16).unbind()
    exact, _ = mlps(16, 3072, torch.float64)
    exact.load_state_dict({name: value.double() for name, value in plain.state_dict().items()})
    truth = run(exact, x.double(), grad.double())
    found, again, theirs = run(ours, x, grad), None, run(plain, x, grad)
    for parameter in ours.parameters():
        parameter.grad = None
    again = run(ours, x, grad)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    for a, b, t in zip(found, theirs, truth, strict=True):
        off, their_off = (float((got.double() - t).norm() / t.norm()) for got in (a, b))
        assert off <= 1.05 * their_off and their_off < 0.02


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shape", [(128, 64), (96, 6400), (300, 192), (4096, 14336)])
def test_weights_in_4_bits_are_unpacked_to_the_bits_of_bitsandbytes(shape: Any, dtype: str) -> None:
    """A failure points at a fused multiply-add, at the order of nibbles, or at another table."""
    functional = pytest.importorskip("bitsandbytes.functional")
    from trainer.model.tune.fused_nf4 import is_for, unpack_nf4

    torch.manual_seed(0)
    weight = (0.02 * torch.randn(shape, device="cuda")).to(getattr(torch, dtype))
    packed, state = functional.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    assert is_for(state)
    assert torch.equal(unpack_nf4(packed, state), functional.dequantize_4bit(packed, state))


def trained(packed: bool, fast: bool) -> list[float]:
    """Return the losses of 50 steps of a small Llama with LoRA, by peft's layers or in ours; bf16, float32 masters."""
    from peft import LoraConfig, inject_adapter_in_model
    from transformers import LlamaConfig, LlamaForCausalLM

    from trainer.model.tune.adapters import ADAPTER
    from trainer.model.tune.gated import fuse_gated
    from trainer.model.tune.lora import fuse_lora
    from trainer.model.tune.quantise import adopt, pack

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97, hidden_size=256, intermediate_size=768, num_hidden_layers=2, num_attention_heads=4
    )
    model = LlamaForCausalLM(config).to("cuda", torch.bfloat16).requires_grad_(False)
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    if packed:
        pack(model, torch.bfloat16, is_sharded=False)
        adopt(model)
        model.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=8, lora_alpha=16, target_modules=names), model, ADAPTER)
    factors = [p for name, p in model.named_parameters() if ".lora_" in name]
    for p in factors:
        p.data = p.data.to(torch.bfloat16)
    if fast:
        assert (fuse_lora(model, ADAPTER), fuse_gated(model, ADAPTER)) == (14, 2)
    masters = [p.detach().float() for p in factors]
    optimizer = torch.optim.AdamW(masters, lr=2e-3)
    losses = []
    for step in range(50):
        starts = torch.arange(4, device="cuda")[:, None] + step
        tokens = (starts + 7 * torch.arange(200, device="cuda")) % 97
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        for master, p in zip(masters, factors, strict=True):
            master.grad, p.grad = None if p.grad is None else p.grad.float(), None
        optimizer.step()
        for master, p in zip(masters, factors, strict=True):
            p.data.copy_(master)
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("packed", [False, True], ids=["lora", "qlora"])
def test_fifty_steps_have_the_losses_of_the_layers_of_peft(packed: bool) -> None:
    """A failure points at a gradient of the kernels that is off by more than rounding."""
    if packed:
        pytest.importorskip("bitsandbytes")
    plain, fast = trained(packed, fast=False), trained(packed, fast=True)
    worst = max(abs(a - b) / a for a, b in zip(plain, fast, strict=True))
    print(f"largest relative difference of a loss: {worst:.2e}; loss {plain[0]:.3f} -> {plain[-1]:.3f}")
    assert plain[-1] < 0.8 * plain[0] and worst < 2.0**-9
