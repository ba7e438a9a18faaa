"""Folders whose weights are packed: made whole while they are read, kept as they are for QLoRA, or refused.

Source: MXFP4 (gpt-oss) and FP8 in blocks (DeepSeek, Qwen) are unpacked by transformers, tensor by tensor; NF4 is what
bitsandbytes writes (QLoRA, arXiv:2305.14314).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from trainer.model.packing_kind import is_nf4, method_of
from trainer.model.tune.quantise import quantised_layers
from trainer.model.tune.quantiser import require_bitsandbytes


def packing_of(hf_config: Any) -> dict[str, Any] | None:
    """Return how the weights of a folder are packed, by its configuration; None where they are whole."""
    for part in (hf_config, hf_config.get_text_config()):
        found = getattr(part, "quantization_config", None)
        if found is not None:
            return dict(found) if isinstance(found, dict) else dict(getattr(found, "to_dict", dict)())
    return None


def forget_packing(hf_config: Any) -> None:
    """Take the packing out of a configuration, of which the weights are whole now, in place."""
    for part in (hf_config, hf_config.get_text_config()):
        vars(part).pop("quantization_config", None)


def names_when_whole(files: Mapping[str, Path], packing: dict[str, Any] | None) -> dict[str, Path]:
    """Return the tensors that files would hold if weights were whole: no scales, and codes under the weight's name."""
    if packing is None or is_nf4(packing):
        return dict(files)
    scales = ("_scale_inv", "_scales", "_scale")
    return {name.removesuffix("_blocks"): file for name, file in files.items() if not name.endswith(scales)}


def unpacking(packing: dict[str, Any]) -> dict[str, Any]:
    """Return what from_pretrained needs to make weights of `WHOLE` whole."""
    from transformers import FineGrainedFP8Config, Mxfp4Config

    kinds: dict[str, Any] = {"mxfp4": Mxfp4Config, "fp8": FineGrainedFP8Config}
    return {"quantization_config": kinds[method_of(packing)](dequantize=True)}


def now_whole(model: Any, dtype: torch.dtype) -> None:
    """Let a model that was unpacked be as any other, in place: saved, cast, shown, and held in the type asked for.

    transformers 5.17 leaves what was MXFP4 in bf16 whatever it was asked for; no value of four bits and a power of two
    is rounded there. What ZeRO-3 shares out is held in one type already.
    """
    forget_packing(model.config)
    for key in ("hf_quantizer", "quantization_method", "is_quantized"):
        if key in vars(model):
            delattr(model, key)
    if dtype == torch.float32:
        for parameter in model.parameters():
            parameter.data = parameter.data.float()


def reading_nf4(device: torch.device) -> dict[str, Any]:
    """Return what from_pretrained needs for files in NF4, which it reads as they are."""
    require_bitsandbytes()
    return {"device_map": {"": str(device)}}


def fit_nf4(model: Any, dtype: torch.dtype, is_sharded: bool) -> None:
    """Let layers that were read in NF4 compute in a type, and be held in it where ZeRO-3 shards them, in place."""
    for layer in quantised_layers(model).values():
        layer.compute_dtype, weight = dtype, layer.weight
        weight.quant_state.dtype = dtype
        if is_sharded:
            weight.data = weight.data.flatten().view(dtype)[:, None]
            weight.quant_storage = layer.quant_storage = dtype
