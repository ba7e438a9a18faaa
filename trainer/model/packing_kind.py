"""How the weights of a folder are packed, by what its config.json says, and which ways are read here. Pure.

Source: MXFP4 (gpt-oss) and FP8 in blocks (DeepSeek, Qwen) are made whole; NF4 is what bitsandbytes writes.
"""

from __future__ import annotations

from typing import Any

from trainer.config.tune import Quantise
from trainer.errors import ModelError

WHOLE = ("mxfp4", "fp8")
"""Methods whose weights become whole ones while they are read."""


def method_of(packing: dict[str, Any]) -> str:
    """Return the name of a method, in lower case."""
    name = packing.get("quant_method")
    return str(getattr(name, "value", name) or "one without a name").lower()


def check_packing(packing: dict[str, Any] | None, source: str, quantise: Quantise) -> None:
    """Refuse weights that would train as others than the folder holds.

    Raises:
        ModelError: Packed by a method that is not read here, or not with this tuning.
    """
    if packing is None:
        return
    method = method_of(packing)
    if method in WHOLE:
        if quantise is not Quantise.none:
            raise ModelError(
                f"`tune.quantise` must be none for {source}, whose weights are in {method}, but is nf4 instead: they "
                "would be rounded twice. Leave it out, or give the folder in full precision."
            )
        return
    is_nf4 = (
        method == "bitsandbytes"
        and packing.get("load_in_4bit")
        and packing.get("bnb_4bit_quant_type") == "nf4"
    )
    if is_nf4 and packing.get("bnb_4bit_use_double_quant"):
        if quantise is Quantise.none:
            raise ModelError(
                f"`tune.quantise` must be nf4 for {source}, whose weights are in NF4, but is none instead. Set "
                "recipe=qlora, or give the folder in full precision."
            )
        return
    what = f"{method} without double quantisation, or not in NF4" if method == "bitsandbytes" else method
    raise ModelError(
        f"`model.path` must be a folder in full precision, or in MXFP4, FP8 or NF4 with double quantisation, but the "
        f"config.json of {source} names the quantisation {what} instead. Give the model that it was made from: an "
        "adapter is merged into that one."
    )


def becomes_whole(packing: dict[str, Any]) -> bool:
    """Tell whether weights are made whole while they are read."""
    return method_of(packing) in WHOLE


def is_nf4(packing: dict[str, Any] | None) -> bool:
    """Tell whether the files hold what QLoRA makes."""
    return packing is not None and method_of(packing) == "bitsandbytes"
