"""A gated MLP with LoRA as one function against its layers one by one: outputs, gradients, and what is left alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch.utils.checkpoint import checkpoint

from trainer.forecast.shapes import decoder_shape, knows
from trainer.model.tune.adapters import ADAPTER, adapter_off
from trainer.model.tune.gated import NAMES, fuse_gated, has_plain_gates
from trainer.model.tune.lora import fuse_lora


class Mlp(nn.Module):
    """Gate, up and down of a Llama-like layer."""

    def __init__(self, act: nn.Module, bias: bool) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(24, 40, bias=bias), nn.Linear(24, 40, bias=bias)
        self.down_proj = nn.Linear(40, 24, bias=bias)
        self.act_fn = act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x)))


class Swapped(Mlp):
    """The same layers in another order."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.down_proj(self.act_fn(self.up_proj(x)) * self.gate_proj(x)))


def adapted(kind: type[Mlp] = Mlp, act: nn.Module | None = None, bias: bool = False, **options: Any) -> Mlp:
    """Return a frozen MLP with adapters, none of them zero, its layers fused one by one; float32."""
    torch.manual_seed(0)
    mlp = kind(act or nn.SiLU(), bias).requires_grad_(False)
    config = LoraConfig(**({"r": 4, "lora_alpha": 12} | options), target_modules=list(NAMES))
    inject_adapter_in_model(config, mlp, adapter_name=ADAPTER)
    for name, parameter in mlp.named_parameters():
        if ".lora_B" in name:
            parameter.data.normal_(std=0.3)
    fuse_lora(mlp, ADAPTER)
    return mlp


def in_one(mlp: Mlp) -> Mlp:
    other = adapted(type(mlp))
    other.load_state_dict(mlp.state_dict())
    assert fuse_gated(other, ADAPTER) == 1
    return other


def run(mlp: nn.Module, x: torch.Tensor, recompute: bool = False) -> list[torch.Tensor]:
    torch.manual_seed(1)
    x = x.clone().requires_grad_()
    y = torch.as_tensor(checkpoint(mlp, x, use_reentrant=False)) if recompute else mlp(x)
    y.backward(torch.randn_like(y))
    assert x.grad is not None
    return [y.detach(), x.grad, *(p.grad for p in mlp.parameters() if p.grad is not None)]


@pytest.mark.parametrize("recompute", [False, True])
def test_outputs_and_gradients_are_those_of_the_layers_one_by_one(recompute):
    """Apart: a scale is forgotten, or a gradient passes by an adapter."""
    mlp = adapted()
    x = torch.randn(2, 5, 24)
    ours, theirs = run(in_one(mlp), x, recompute), run(mlp, x)
    assert len(ours) == len(theirs) == 2 + 2 * len(NAMES)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_with_the_adapter_off_or_no_row_the_layers_answer_one_by_one():
    mlp = adapted()
    ours = in_one(mlp)
    x = torch.randn(2, 5, 24)
    with adapter_off(ours), adapter_off(mlp):
        assert torch.equal(ours(x), mlp(x))
    assert ours(torch.zeros(0, 24)).shape == (0, 24)


@pytest.mark.parametrize(
    "mlp",
    [
        lambda: adapted(act=nn.GELU()),
        lambda: adapted(Swapped),
        lambda: adapted(bias=True),
        lambda: adapted(r=64),
        lambda: adapted(lora_dropout=0.1),
    ],
    ids=["gelu", "swapped", "bias", "large rank", "dropout"],
)
def test_another_function_is_left_as_it_is(mlp):
    """Wrong: modules are known by the names of their layers."""
    before = mlp()
    assert fuse_gated(before, ADAPTER) == 0 and "forward" not in vars(before)


@pytest.mark.parametrize(
    ("model_type", "more"),
    [
        ("llama", {}),
        ("llama", {"hidden_act": "gelu"}),
        ("llama", {"mlp_bias": True}),
        ("mistral", {}),
        ("qwen3", {}),
        ("gemma", {}),
        ("gemma2", {}),
        ("gemma3_text", {}),
        ("olmo2", {}),
        ("phi3", {}),
        ("smollm3", {}),
        ("glm4", {}),
        ("granite", {}),
        ("cohere", {}),
        ("falcon_h1", {"mlp_multipliers": [2.0, 0.5]}),
        ("qwen3_5_text", {"linear_num_key_heads": 2, "linear_num_value_heads": 2}),
    ],
)
def test_the_forecast_takes_for_one_function_what_a_run_makes_one(model_type, more):
    """From config.json where families are counted by it, and from code on the meta device where they are not."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model(
        model_type, **sizes, num_key_value_heads=2, head_dim=16, vocab_size=64, pad_token_id=0, **more
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    said = [has_plain_gates(model)]
    if knows(config.to_dict()):
        said.append(decoder_shape(config.to_dict(), model_type).has_silu_gates)
    names = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()} & set(NAMES)
    if len(names) == len(NAMES):
        inject_adapter_in_model(LoraConfig(r=4, target_modules=list(names)), model, adapter_name=ADAPTER)
    made = fuse_gated(model, ADAPTER) > 0
    assert said == [made] * len(said)
