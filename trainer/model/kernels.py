"""Fused norm, rotary and gated-MLP kernels from Liger, on the loaded model."""

from __future__ import annotations

import importlib.util
import sys
from types import FunctionType
from typing import Any

from trainer.config.model import Kernels
from trainer.errors import ModelError
from trainer.model.experts import expert_tensors


def apply_kernels(model: Any, asked: Kernels, on_gpu: bool) -> str:
    """Patch the model's layers in place and return what was done, for the log.

    The loss is not Liger's: our head is faster up to 8k tokens and needs no external weight (measured
    in benchmarks/).

    Raises:
        ModelError: Liger was asked for and is missing or does not know the architecture.
    """
    if asked is Kernels.none or (asked is Kernels.auto and not on_gpu):
        return "none"
    if not on_gpu:
        raise ModelError(
            "`model.kernels` must be none or auto without a GPU, but is liger instead. Set "
            "model.kernels=auto."
        )
    if importlib.util.find_spec("liger_kernel") is None:
        if asked is Kernels.auto:
            return "none (liger-kernel is not installed)"
        raise ModelError(
            "`model.kernels` must be installed, but liger is missing. Install it with: pip install "
            "'palimpsest-trainer[gpu]'; or set model.kernels=auto."
        )
    from liger_kernel.transformers.monkey_patch import (
        MODEL_TYPE_TO_APPLY_LIGER_FN,
        _apply_liger_kernel_to_instance,
    )

    model_type = model.config.model_type
    if model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        if asked is Kernels.auto:
            return f"none (liger does not know {model_type})"
        raise ModelError(
            f"`model.kernels` must be none for the architecture {model_type}, but is liger instead."
        )
    _apply_liger_kernel_to_instance(model=model, fused_linear_cross_entropy=False, cross_entropy=False)
    return "liger" + (", experts by transformers" if _give_back_experts(model) else "")


def _give_back_experts(model: Any) -> bool:
    """Leave experts to transformers, in place; tell whether there are any.

    Liger 0.8.5 tries many settings of its kernel for each shape: a mixture of 128 experts had not made its first step
    after two minutes on an H200, and made it at once without (benchmarks/results/qwen3_30b_a3b_6_layers_1xH200.json).
    """
    owners = {name.rpartition(".")[0] for name in expert_tensors(model)}
    for owner in owners:
        for key in ("forward", "_get_name"):
            vars(model.get_submodule(owner)).pop(key, None)
    return bool(owners)


def missing_kernels(model: Any) -> list[str]:
    """Return the packages whose kernels would compute layers of a model that plain torch computes without them.

    transformers wraps such functions, and the wrapper knows its package and whether that was found. Of a transformers
    whose wrappers say neither, none.
    """
    modules = {type(module).__module__ for module in model.modules()}
    functions = [
        value
        for name in modules
        for value in vars(sys.modules.get(name, object)).values()
        if isinstance(value, FunctionType) and value.__closure__
    ]
    found = set[str]()
    for function in functions:
        held = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        if {"package", "is_new_implementation"} <= held.keys() and not held[
            "is_new_implementation"
        ].cell_contents:
            found.add(str(held["package"].cell_contents))
    return sorted("flash-linear-attention" if name == "fla" else name.replace("_", "-") for name in found)


def say_missing_kernels(model: Any, on_gpu: bool) -> str | None:
    """Return what a person should know of a GPU that computes layers slowly; None where it does not."""
    packages = missing_kernels(model) if on_gpu else []
    if not packages:
        return None
    listed = " ".join(packages)
    return (
        f"Layers of this model are computed in plain torch, right but slow: their kernels are not installed. Install "
        f"them with: pip install {listed}"
    )
