"""A frozen base in 4 bits: NF4 with double quantisation, by bitsandbytes, made while the weights are read.

Source: QLoRA (Dettmers et al. 2023, arXiv:2305.14314).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from trainer.errors import ModelError
from trainer.model.scorer import output_layer
from trainer.model.tune.quantiser import require_bitsandbytes

NF4 = "nf4, double quantisation, blocks of 64"
"""What changes the base's answers beside its files; part of what names a base."""


def load_arguments(dtype: torch.dtype, device: torch.device, is_sharded: bool) -> dict[str, Any]:
    """Return what from_pretrained needs to quantise each tensor as it comes from its file.

    Args:
        is_sharded: ZeRO-3 gathers parameters of one dtype at a time, so packed weights take the model's.
    Raises:
        ConfigError: No bitsandbytes.
    """
    require_bitsandbytes()
    from transformers import BitsAndBytesConfig

    quantiser = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=dtype if is_sharded else torch.uint8,
    )
    return {"quantization_config": quantiser, "device_map": {"": str(device)}}


def pack(model: Any, dtype: torch.dtype, is_sharded: bool) -> None:
    """Pack a model that is in memory, layer by layer, in place; for random weights, which come from no file."""
    require_bitsandbytes()
    from bitsandbytes.nn import Linear4bit, Params4bit

    head = output_layer(model)
    options = {"quant_type": "nf4", "quant_storage": dtype if is_sharded else torch.uint8}
    for name, layer in list(model.named_modules()):
        if type(layer) is not nn.Linear or layer is head:
            continue
        sizes = (layer.in_features, layer.out_features)
        packed = Linear4bit(*sizes, bias=False, compute_dtype=dtype, device="meta", **options)
        packed.bias = layer.bias
        whole = layer.weight.data
        packed.weight = Params4bit(whole, requires_grad=False, module=packed, **options).to(whole.device)
        model.set_submodule(name, packed)
    model.is_loaded_in_4bit = True


def adopt(model: nn.Module) -> None:
    """Check what was quantised, give it our forward, and keep it out of state dicts, in place.

    Raises:
        ModelError: A weight of another shape than its layer, or nothing to quantise.
    """
    layers = quantised_layers(model)
    if not layers:
        raise ModelError(
            "`model.path` must have linear layers for tune.quantise=nf4, but has none instead. Set tune.quantise=none."
        )
    for name, layer in layers.items():
        shape = tuple(layer.weight.quant_state.shape)
        if shape != (layer.out_features, layer.in_features):
            raise ModelError(
                f"The weights of the model must match it exactly, but there are mismatched keys: {name}.weight is "
                f"{list(shape)} in the files and {[layer.out_features, layer.in_features]} in the model. Use files "
                "that fit this transformers version."
            )
        layer.forward = functools.partial(_forward, layer)
        layer.register_state_dict_post_hook(_drop_constants)


def quantised_layers(model: nn.Module) -> dict[str, Any]:
    """Return the layers with packed weights by name."""
    modules: dict[str, Any] = dict(model.named_modules())
    # An adapter around such a layer shows the same weight, but does not own it.
    return {name: module for name, module in modules.items() if is_packed(module._parameters.get("weight"))}


def is_packed(parameter: Any) -> bool:
    """Tell whether a parameter holds quantised weights."""
    return getattr(parameter, "quant_state", None) is not None


def num_weights(parameter: Any) -> int:
    """Return the weights that a parameter stands for: packed, sharded or plain."""
    if is_packed(parameter):
        return int(parameter.quant_state.shape.numel())
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def held_tensors(parameter: Any) -> Iterator[Tensor]:
    """Yield everything that this rank holds of a parameter, the constants of its blocks included."""
    yield getattr(parameter, "ds_tensor", parameter).detach().as_subclass(Tensor)
    if is_packed(parameter):
        state = parameter.quant_state
        yield from (state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)


def held_bytes(model: nn.Module) -> int:
    """Return the bytes that this rank holds of the frozen parameters."""
    frozen = (p for p in model.parameters() if not p.requires_grad)
    return sum(held.numel() * held.element_size() for p in frozen for held in held_tensors(p))


def holds(parameter: Any, expected: Tensor) -> bool:
    """Tell whether a whole parameter is a tensor, or what quantising that tensor gives, to the last bit.

    Of a folder in NF4 the tensor holds the packed bits themselves.
    """
    if not is_packed(parameter):
        actual = parameter.detach().cpu()
        return torch.equal(actual, expected.to(actual.dtype))
    if expected.dtype is torch.uint8:
        bits = parameter.detach().as_subclass(Tensor).view(torch.uint8).cpu()
        return torch.equal(bits.flatten(), expected.flatten())
    from bitsandbytes.functional import quantize_4bit

    state = parameter.quant_state
    packed, again = quantize_4bit(
        expected.to(parameter.device, state.dtype),
        blocksize=state.blocksize,
        compress_statistics=state.nested,
        quant_type=state.quant_type,
        quant_storage=parameter.dtype,
    )
    pairs = [
        (parameter.detach().as_subclass(Tensor).view(torch.uint8), packed.view(torch.uint8)),
        (state.absmax, again.absmax),
        (state.offset, again.offset),
        (state.state2.absmax, again.state2.absmax),
    ]
    return all(torch.equal(actual, meant) for actual, meant in pairs)


def use_float32(model: nn.Module) -> nn.Module:
    """Compute in float32 with the very weights the packed ones stand for, by bitsandbytes' own layers."""
    for layer in quantised_layers(model).values():
        layer.compute_dtype = torch.float32
    return nn.Module.float(
        model
    )  # that of transformers refuses, for the weights in 4 bits, which stay as they are


def keep_right(model: nn.Module) -> nn.Module:
    """Keep plain bitsandbytes from what it does wrong or for inference only on some processors, in place.

    It repacks weights for a bf16 kernel, and unpacks rows that are no whole blocks wrongly (see `whole_weight`); such
    layers get our forward.
    """
    for layer in quantised_layers(model).values():
        layer.support_avx512bf16_for_cpu = False
        if layer.in_features % layer.weight.quant_state.blocksize:
            layer.forward = functools.partial(_forward, layer)
    return model


def _drop_constants(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Take the constants of a packed weight out of a state dict: frozen, but not known as parameters."""
    for name in [name for name in state if name.startswith(f"{prefix}weight.")]:
        del state[name]


def _forward(layer: Any, x: Tensor) -> Tensor:
    apply: Any = _PackedMatmul.apply
    return torch.as_tensor(apply(x, layer))


class _PackedMatmul(torch.autograd.Function):
    """x W^T + bias, both frozen, with W unpacked in forward and again in backward.

    Backward reads the parameter from the layer. bitsandbytes' own function keeps a view of the packed weight from
    forward to backward, and under ZeRO-3 that view keeps what was gathered: every rank would hold the whole base.
    It also packs anew for evaluation on some processors, so that the frozen bits would not stay what they were.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Any) -> Tensor:
        ctx.layer = layer
        return base_output(layer, x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None
        return grads[0] @ whole_weight(ctx.layer, grads[0].dtype), None


def base_output(layer: Any, x: Tensor) -> Tensor:
    """Return what a frozen linear layer makes of x, whole or in 4 bits."""
    bias = None if layer.bias is None else layer.bias.to(x.dtype)
    return torch.nn.functional.linear(x, whole_weight(layer, x.dtype), bias)


def whole_weight(layer: Any, dtype: torch.dtype) -> Tensor:
    """Return the weight of a frozen linear layer: its own, or unpacked into a buffer that the caller lets go.

    Without our kernel it is unpacked as one row: with AVX-512 bitsandbytes takes the constants of a row's blocks from
    the wrong place when rows are no whole number of blocks (seen with 0.50.2: rows of 32, 96 and 160 are off by up to
    11 where the largest weight is 11; without AVX-512 and on GPUs both ways agree to the bit).
    """
    weight = layer.weight
    if not is_packed(weight):
        return torch.as_tensor(weight)
    packed, state = weight.detach().as_subclass(Tensor), weight.quant_state
    if packed.is_cuda:
        from trainer.model.tune.fused_nf4 import is_for, unpack_nf4

        if is_for(state):
            return unpack_nf4(packed, state).to(dtype)
    from bitsandbytes.functional import dequantize_blockwise

    scales = dequantize_blockwise(state.absmax, state.state2) + state.offset
    form = (state.blocksize, state.quant_type, (state.shape.numel(),), state.dtype)
    unpacked = torch.ops.bitsandbytes.dequantize_4bit(packed.view(torch.uint8).view(-1, 1), scales, *form)
    return torch.as_tensor(unpacked).view(state.shape).to(dtype)
