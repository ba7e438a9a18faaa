"""LoRA inside its layer: frozen matmul and low-rank product in a few calls, siblings of one input together.

The parameters, their names and their initialisation stay peft's; only the forward and the gradient are ours, where they
are the same function. peft's own run three elementwise passes over each output and as many over each gradient.

Shapes: N tokens, I inputs, O outputs, R rank; S ranks of all siblings in a row.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainer.model.exact_routers import within_exact
from trainer.model.tune.quantise import base_output, is_packed, whole_weight

SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers of one module that read the same input in Llama-like models."""
PARTS = 2
"""Factors of a layer: A, B."""


class FusedLora(torch.autograd.Function):
    """Linear layers with adapters on one input: x W^T + scale (x A^T) B^T for each, rounded once."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scales: tuple[float, ...], bases: Sequence[Any], *factors: Tensor
    ) -> tuple[Tensor, ...]:
        """Return one output a layer.

        Args:
            bases: Frozen layers, whole or in 4 bits, which are unpacked here and again in backward.
            factors: A [R, I] and B [O, R] of each layer in turn.
        """
        x_NI = x.reshape(-1, x.shape[-1])
        a_SI = joined(factors[::PARTS])
        low_NS = x_NI @ a_SI.t()
        outputs, start = [], 0
        for scale, base, b in zip(scales, bases, factors[1::PARTS], strict=True):
            # The frozen product by itself: with B zero the output is the base's to the last bit.
            output = base_output(base, x)
            low_NR = low_NS[:, start : start + b.shape[1]]
            output.view(-1, output.shape[-1]).addmm_(low_NR, b.t(), alpha=scale)
            outputs.append(output)
            start += b.shape[1]
        ctx.save_for_backward(x_NI, low_NS, a_SI, *factors[1::PARTS])
        ctx.scales, ctx.bases, ctx.shape = scales, bases, x.shape
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradients of x and of each A and B; those of what is frozen are None."""
        x_NI, low_NS, a_SI, *factors_b = ctx.saved_tensors
        grad_low: list[Tensor] = []
        grad_b: list[Tensor | None] = []
        grad_x, start = None, 0
        for scale, grad, base, b_OR in zip(ctx.scales, grads, ctx.bases, factors_b, strict=True):
            low_NR = low_NS[:, start : start + b_OR.shape[1]]
            start += b_OR.shape[1]
            if grad is None:  # an output that nothing used
                grad_low.append(torch.zeros_like(low_NR))
                grad_b.append(None)
                continue
            grad_NO = grad.reshape(-1, grad.shape[-1])
            grad_low.append(scaled_product(grad_NO, b_OR, scale))
            grad_b.append(scaled_product(grad_NO.t(), low_NR, scale))
            if ctx.needs_input_grad[0]:
                weight = whole_weight(base, grad_NO.dtype)
                grad_x = grad_NO @ weight if grad_x is None else grad_x.addmm_(grad_NO, weight)
        grad_low_NS = joined(grad_low, dim=1)
        grad_a = (grad_low_NS.t() @ x_NI).split([b.shape[1] for b in factors_b])
        if grad_x is not None:
            grad_x = grad_x.addmm_(grad_low_NS, a_SI).view(ctx.shape)
        pairs = zip(grad_a, grad_b, strict=True)
        found = [part for a, b in pairs for part in (None if b is None else a, b)]
        return grad_x, None, None, *found


class AddedLora(torch.autograd.Function):
    """An adapter beside a frozen layer that computes by itself: y + scale (x A^T) B^T, rounded once."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, a_RI: Tensor, b_OR: Tensor, scale: float) -> Tensor:
        """Return the sum; y is what the frozen layer made of x."""
        x_NI = x.reshape(-1, x.shape[-1])
        low_NR = x_NI @ a_RI.t()
        ctx.save_for_backward(x_NI, low_NR, a_RI, b_OR)
        ctx.scale, ctx.shape = scale, x.shape
        return torch.addmm(y.reshape(-1, y.shape[-1]), low_NR, b_OR.t(), alpha=scale).view(y.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of y, x, A and B."""
        x_NI, low_NR, a_RI, b_OR = ctx.saved_tensors
        grad_NO = grad.reshape(-1, grad.shape[-1])
        grad_low_NR = scaled_product(grad_NO, b_OR, ctx.scale)
        grad_x = (grad_low_NR @ a_RI).view(ctx.shape) if ctx.needs_input_grad[1] else None
        return grad, grad_x, grad_low_NR.t() @ x_NI, scaled_product(grad_NO.t(), low_NR, ctx.scale), None


class Siblings:
    """Layers with adapters that read one input, computed together when the first of them is asked."""

    def __init__(self, layers: Sequence[Any], adapter: str) -> None:
        """Take peft's layers, one or several."""
        self._layers = layers
        self._adapter = adapter
        self._input: Tensor | None = None
        self._state: tuple[int, bool] | None = None
        self._ready: dict[int, Tensor] = {}

    def output(self, layer: Any, x: Tensor) -> Tensor:
        """Return the output of one layer; its siblings' are kept until each is asked for with the same unchanged input.

        They are of the weights of that moment: within a forward pass weights do not change.
        """
        state = (-1 if x.is_inference() else x._version, torch.is_grad_enabled())
        if self._input is not x or self._state != state or id(layer) not in self._ready:
            self._input, self._state = x, state
            self._ready = dict(zip(map(id, self._layers), self._outputs(x), strict=True))
        output = self._ready.pop(id(layer))
        if not self._ready:
            self._input = None
        return output

    def _outputs(self, x: Tensor) -> tuple[Tensor, ...]:
        scales = tuple(float(layer.scaling[self._adapter]) for layer in self._layers)
        factors = [
            (layer.lora_A[self._adapter].weight, layer.lora_B[self._adapter].weight) for layer in self._layers
        ]
        bases = [layer.base_layer for layer in self._layers]
        if _joins(bases[0]):
            parts = [part for pair in factors for part in pair]
            return tuple(FusedLora.apply(x, scales, bases, *parts))  # type: ignore[no-untyped-call]
        return tuple(
            AddedLora.apply(base(x), x, a, b, scale)  # type: ignore[no-untyped-call]
            for base, (a, b), scale in zip(bases, factors, scales, strict=True)
        )


def fuse_lora(model: nn.Module, adapter: str) -> int:
    """Give adapters on frozen linear layers, plain or packed, the fused forward, in place; return how many.

    Left to peft: DoRA, dropout, layers of other kinds, and those of a router that computes in float32.
    """
    count, exact = 0, within_exact(model)
    for parent in list(model.modules()):
        children = {name: child for name, child in parent.named_children() if id(child) not in exact}
        found = {name: child for name, child in children.items() if can_fuse(child, adapter)}
        joining = {name for name, child in found.items() if _joins(child.base_layer)}
        families = [[found.pop(name) for name in names if name in joining] for names in SIBLINGS]
        for layers in [*families, *([layer] for layer in found.values())]:
            siblings = Siblings(layers, adapter)
            for layer in layers:
                layer.forward = functools.partial(_forward, layer, siblings, adapter)
            count += len(layers)
    return count


def _forward(layer: Any, siblings: Siblings, adapter: str, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Return a layer's output: peft's own with the adapter switched off, merged, or of another dtype than x."""
    is_ours = not (layer.disable_adapters or layer.merged or args or kwargs)
    if is_ours and layer.lora_A[adapter].weight.dtype == x.dtype:
        return siblings.output(layer, x)
    return torch.as_tensor(type(layer).forward(layer, x, *args, **kwargs))


def can_fuse(module: nn.Module, adapter: str) -> bool:
    """Tell whether a layer is plain LoRA without dropout on something frozen."""
    from peft.tuners.lora.layer import LoraLayer

    if not isinstance(module, LoraLayer):
        return False
    layer: Any = module
    if adapter not in layer.scaling:
        return False
    base = layer.base_layer
    if type(base) is not nn.Linear and not is_packed(base._parameters.get("weight")):
        return False
    is_frozen = not any(p.requires_grad for p in base.parameters())
    is_plain = adapter not in layer.lora_variant and isinstance(layer.lora_dropout[adapter], nn.Identity)
    return is_frozen and is_plain and list(layer.active_adapters) == [adapter]


def _joins(base: Any) -> bool:
    """Tell whether a frozen layer is computed with its siblings: not in 4 bits on a CPU, where nothing is gained by it.

    There its losses stay what they were to the last bit.
    """
    return type(base) is nn.Linear or bool(base.weight.is_cuda)


def joined(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Put tensors one after the other; one alone stays where it is."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim=dim)


def scaled_product(left: Tensor, right: Tensor, scale: float) -> Tensor:
    """Return scale (left @ right), rounded once."""
    return torch.addmm(left.new_empty(()), left, right, beta=0, alpha=scale)  # beta 0: the first is not read
