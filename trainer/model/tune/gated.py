"""A gated MLP with LoRA as one function: down(silu(gate x) * up x), the adapters' sums inside its elementwise kernels.

Layer by layer, the products of gate and up are read and written once more for their adapters, and their gradients are
read four times. Here a kernel that reads them anyway does all of it, and what goes into down is not kept for backward
but made again. The parameters stay peft's.

Shapes: N tokens, I inputs, F width of the MLP, O outputs, R rank; S ranks of gate and up in a row.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trainer.config.model import Kernels
from trainer.config.tune import MOST_GATED_RANK
from trainer.model.tune.adapters import ADAPTER
from trainer.model.tune.lora import can_fuse, fuse_lora, joined, scaled_product
from trainer.model.tune.quantise import base_output, is_packed, whole_weight

NAMES = ("gate_proj", "up_proj", "down_proj")
PLAIN = "self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))"
"""How transformers writes such an MLP."""
SAME = 0.02
"""Share of an output's norm by which rounding to bf16 may part two ways of one function; others are far off."""


class Adapters(NamedTuple):
    """What the elementwise kernels need of the adapters."""

    low_NS: Tensor
    b_gate_FR: Tensor
    b_up_FR: Tensor
    scale_gate: float
    scale_up: float


class GatedLora(torch.autograd.Function):
    """down(silu(gate x) * up x), each with an adapter."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scales: tuple[float, ...], bases: Sequence[Any], *factors: Tensor
    ) -> Tensor:
        """Return the output.

        Args:
            bases: Frozen layers gate, up and down, whole or in 4 bits.
            factors: A and B of each of them in turn.
        """
        a_gate, b_gate, a_up, b_up, a_RF, b_OR = factors
        gate, up, down = bases
        x_NI = x.reshape(-1, x.shape[-1])
        a_SI = joined([a_gate, a_up])
        low_NS = x_NI @ a_SI.t()
        gate_NF, up_NF = base_output(gate, x_NI), base_output(up, x_NI)
        inner_NF = gated(gate_NF, up_NF, Adapters(low_NS, b_gate, b_up, *scales[:2]))
        low_NR = inner_NF @ a_RF.t()
        output = base_output(down, inner_NF).addmm_(low_NR, b_OR.t(), alpha=scales[2])
        ctx.save_for_backward(x_NI, low_NS, gate_NF, up_NF, low_NR, a_SI, b_gate, b_up, a_RF, b_OR)
        ctx.scales, ctx.bases, ctx.shape = scales, bases, x.shape
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x and of the factors."""
        x_NI, low_NS, gate_NF, up_NF, low_NR, a_SI, b_gate, b_up, a_RF, b_OR = ctx.saved_tensors
        gate, up, down = ctx.bases
        grad_NO = grads[0].reshape(-1, grads[0].shape[-1])
        grad_low_NR = scaled_product(grad_NO, b_OR, ctx.scales[2])
        grad_b = scaled_product(grad_NO.t(), low_NR, ctx.scales[2])
        grad_inner = grad_NO @ whole_weight(down, grad_NO.dtype)
        found = gated_backward(
            grad_inner, grad_low_NR, a_RF, gate_NF, up_NF, Adapters(low_NS, b_gate, b_up, *ctx.scales[:2])
        )
        grad_gate, grad_up, grad_low_NS, grad_b_gate, grad_b_up, grad_a = found
        del grad_inner
        grad_a_gate, grad_a_up = (grad_low_NS.t() @ x_NI).split([b_gate.shape[1], b_up.shape[1]])
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad_gate @ whole_weight(gate, grad_gate.dtype)
            grad_x.addmm_(grad_up, whole_weight(up, grad_up.dtype)).addmm_(grad_low_NS, a_SI)
            grad_x = grad_x.view(ctx.shape)
        return grad_x, None, None, grad_a_gate, grad_b_gate, grad_a_up, grad_b_up, grad_a, grad_b


def gated(gate_NF: Tensor, up_NF: Tensor, adapters: Adapters) -> Tensor:
    """Return silu(gate) * up [N, F], both with their adapters' products added; rounded where separate layers round."""
    if gate_NF.is_cuda:
        from trainer.model.tune.fused_gated import fused_gated

        return fused_gated(gate_NF, up_NF, *adapters)
    whole_gate, whole_up = _adapted(gate_NF, up_NF, adapters)
    return nn.functional.silu(whole_gate) * whole_up


def gated_backward(
    grad_NF: Tensor, grad_low_NR: Tensor, a_RF: Tensor, gate_NF: Tensor, up_NF: Tensor, adapters: Adapters
) -> tuple[Tensor, ...]:
    """Return the gradients of gate, up, low_NS, b_gate, b_up and of a_RF.

    Args:
        grad_NF: Gradient of what goes into down, but for its adapter's part, which is grad_low_NR @ a_RF.
    """
    if gate_NF.is_cuda:
        from trainer.model.tune.fused_gated import fused_gated_backward

        return fused_gated_backward(grad_NF, grad_low_NR, a_RF, gate_NF, up_NF, *adapters)
    whole_gate, whole_up = _adapted(gate_NF, up_NF, adapters)
    grad = torch.addmm(grad_NF, grad_low_NR, a_RF)
    sigmoid = torch.sigmoid(whole_gate)
    silu = whole_gate * sigmoid
    grad_gate, grad_up = grad * (silu * (1 - sigmoid) + sigmoid) * whole_up, grad * silu
    low_gate, low_up = _halves(adapters)
    pairs = [
        (grad_gate, adapters.b_gate_FR, low_gate, adapters.scale_gate),
        (grad_up, adapters.b_up_FR, low_up, adapters.scale_up),
    ]
    grad_low = torch.cat([scaled_product(part, b, scale) for part, b, _, scale in pairs], dim=1)
    grad_b = [scaled_product(part.t(), low, scale) for part, _, low, scale in pairs]
    return grad_gate, grad_up, grad_low, *grad_b, grad_low_NR.t() @ (silu * whole_up)


def _halves(adapters: Adapters) -> tuple[Tensor, Tensor]:
    rank = adapters.b_gate_FR.shape[1]
    return adapters.low_NS[:, :rank], adapters.low_NS[:, rank:]


def _adapted(gate_NF: Tensor, up_NF: Tensor, adapters: Adapters) -> tuple[Tensor, Tensor]:
    low_gate, low_up = _halves(adapters)
    return (
        torch.addmm(gate_NF, low_gate, adapters.b_gate_FR.t(), alpha=adapters.scale_gate),
        torch.addmm(up_NF, low_up, adapters.b_up_FR.t(), alpha=adapters.scale_up),
    )


def fuse_if_same(model: nn.Module, kernels: Kernels, stage: int | None, num_layers: int, on_gpu: bool) -> str:
    """Compute adapters within their layers where that is the same function; return what was done, for the log.

    ZeRO-3 gathers the weight of a layer by a hook on its module, which the fused forward passes by.
    """
    if kernels is Kernels.none:
        return ", LoRA by peft"
    if stage == 3:
        return ", LoRA by peft (ZeRO-3)"
    done = f", LoRA fused into {fuse_lora(model, ADAPTER)} of {num_layers} layers"
    return f"{done}, {fuse_gated(model, ADAPTER)} gated MLPs in one" if on_gpu else done


def fuse_gated(model: nn.Module, adapter: str) -> int:
    """Compute gated MLPs whose three layers have adapters as one function, in place; return how many.

    What such a module computes is not read from its name: both ways are asked about two rows.
    """
    count = 0
    for mlp in list(model.modules()):
        layers = _layers(mlp, adapter)
        if layers is None or not _is_same(mlp, layers, adapter):
            continue
        mlp.forward = functools.partial(_forward, layers, mlp.forward, adapter)
        count += 1
    return count


def has_plain_gates(model: nn.Module) -> bool:
    """Tell whether all modules of three linear layers gate, up and down seem to be down(silu(gate x) * up x), unbiased.

    Read from their code, for models without weights: what is fused is asked, not read.
    """
    found = [mlp for mlp in model.modules() if dict(mlp.named_children()).keys() >= set(NAMES)]
    return bool(found) and all(_seems_plain(mlp) for mlp in found)


def _seems_plain(mlp: nn.Module) -> bool:
    has_bias = any(mlp.get_submodule(name)._parameters.get("bias") is not None for name in NAMES)
    code = inspect.getsource(type(mlp).forward)
    activation = type(getattr(mlp, "act_fn", None)).__name__
    return not has_bias and PLAIN in code and activation in ("SiLU", "SiLUActivation")


def _layers(mlp: nn.Module, adapter: str) -> list[Any] | None:
    """Return gate, up and down of a module that has them, all with plain LoRA of one small rank, and no bias."""
    children = dict(mlp.named_children())
    if not children.keys() >= set(NAMES):
        return None
    layers: list[Any] = [children[name] for name in NAMES]
    if not all(can_fuse(layer, adapter) and layer.base_layer.bias is None for layer in layers):
        return None
    ranks = {layer.r[adapter] for layer in layers}
    dtypes = {layer.lora_A[adapter].weight.dtype for layer in layers}
    dtypes |= {layer.base_layer.weight.dtype for layer in layers if not is_packed(layer.base_layer.weight)}
    return layers if len(ranks) == len(dtypes) == 1 and ranks.pop() <= MOST_GATED_RANK else None


def _is_same(mlp: nn.Module, layers: Sequence[Any], adapter: str) -> bool:
    factor = layers[0].lora_A[adapter].weight
    x = torch.arange(2 * factor.shape[1], device=factor.device).sin().reshape(2, -1).to(factor.dtype)
    with torch.no_grad():
        ours, theirs = _output(layers, adapter, x), mlp.forward(x)
    return bool((ours.float() - theirs.float()).norm() <= SAME * theirs.float().norm())


def _forward(layers: Sequence[Any], plain: Callable[[Tensor], Tensor], adapter: str, x: Tensor) -> Tensor:
    """Return the output: layer by layer with the adapter switched off, merged, or of another dtype than x."""
    is_off = any(layer.disable_adapters or layer.merged for layer in layers)
    if is_off or not x.numel() or any(layer.lora_A[adapter].weight.dtype != x.dtype for layer in layers):
        return plain(x)
    return _output(layers, adapter, x)


def _output(layers: Sequence[Any], adapter: str, x: Tensor) -> Tensor:
    scales = tuple(float(layer.scaling[adapter]) for layer in layers)
    factors = [part.weight for layer in layers for part in (layer.lora_A[adapter], layer.lora_B[adapter])]
    bases = [layer.base_layer for layer in layers]
    return torch.as_tensor(GatedLora.apply(x, scales, bases, *factors))  # type: ignore[no-untyped-call]
