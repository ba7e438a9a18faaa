"""Packed weights and the scales beside them: one read without the other is another number, and nothing would notice.

Source: names of scales as transformers 5.24 reads them (`quantizer_finegrained_fp8.py`, `integrations/mxfp4.py`), and
of states as bitsandbytes 0.50 writes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from safetensors import SafetensorError

from trainer.config.model import ModelConfig, ModelKind
from trainer.errors import ModelError
from trainer.model.packing_kind import is_nf4, method_of
from trainer.model.tensor_files import tensor_types, weight_files

_ONE_BYTE = ("F8_", "F4", "I8", "U8")
_STATE = ".quant_state.bitsandbytes__nf4"


def check_scales(source: str, model: ModelConfig, packing: dict[str, Any] | None) -> None:
    """Refuse a folder in which a packed weight has no scales, or scales stand beside a weight that is not packed.

    transformers reads the codes of the first as numbers, and multiplies the second once more. Reads the heads of the
    files, no tensor. A folder without safetensors files here, or with some that cannot be read, is not looked at.

    Args:
        packing: How its configuration says that weights are packed; None where it says nothing, which FP8 contradicts.
    Raises:
        ModelError: Names the first of them.
    """
    if model.kind is ModelKind.random:
        return
    try:
        types = tensor_types(weight_files(source, model.revision))
    except (OSError, ValueError, KeyError, SafetensorError):  # who loads them says what is wrong
        return
    problems = list(_problems(types, packing))
    if not problems:
        return
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    raise ModelError(
        f"`model.path` must be a folder whose packed weights have their scales, but {source} holds {problems[0]} "
        f"instead{more}: the model would be another one. Get its files again, or name another model.path."
    )


def _problems(types: Mapping[str, str], packing: dict[str, Any] | None) -> Iterator[str]:
    """Yield what is wrong with each tensor, as the object of a sentence."""
    if packing is None:
        for name, kind in types.items():
            if kind.startswith("F8_"):
                yield f"{name} in {kind} and no quantization_config in its config.json"
    elif is_nf4(packing):
        for name, kind in types.items():
            if name.endswith(".weight") and kind == "U8" and name + _STATE not in types:
                yield f"{name} in {kind} without {name + _STATE}"
    elif method_of(packing) == "mxfp4":
        for name in types:
            for own, other in (("_blocks", "_scales"), ("_scales", "_blocks")):
                if name.endswith(own) and name.removesuffix(own) + other not in types:
                    yield f"{name} without {name.removesuffix(own) + other}"
    else:
        yield from _beside_fp8(types)


def _beside_fp8(types: Mapping[str, str]) -> Iterator[str]:
    scale_of = {name: found for name in types if (found := _scale_of(name, types))}
    scales = {*scale_of.values()}
    for name, kind in types.items():
        is_packed = kind.startswith(_ONE_BYTE)
        if name in scale_of and not is_packed:
            yield f"{name} in {kind} with {scale_of[name]}, which only a packed weight has"
        elif is_packed and name not in scale_of and name not in scales:
            yield f"{name} in {kind} without {name}_scale_inv"


def _scale_of(name: str, types: Mapping[str, str]) -> str | None:
    """Return the tensor that transformers takes for a weight's scales; None where the files hold none."""
    stem = name.removesuffix(".weight")
    others = [f"{stem}.scale", f"{stem}.qscale_weight"] if stem != name else []
    return next((found for found in (f"{name}_scale_inv", *others) if found in types), None)
