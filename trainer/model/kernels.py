"""Kernels of other packages: Liger's, put into a loaded model, and those that transformers takes by itself."""

from __future__ import annotations

import importlib.util
import inspect
import logging
import sys
from collections.abc import Iterable, Iterator
from types import FunctionType
from typing import Any

from trainer.config.model import Kernels
from trainer.errors import ModelError
from trainer.model.experts import expert_tensors

_LOG = logging.getLogger(__name__)
NOT_LIGERS = "not Liger's"
"""Others, as of LoRA, are told beside it."""
_HELD = {"package", "torch_function", "implementation", "applicable_params", "is_new_implementation"}
"""What transformers' wrapper of a kernel holds, 5.17 to 5.24."""


def apply_kernels(model: Any, asked: Kernels, on_gpu: bool) -> str:
    """Patch the model's layers in place and return what was done, for the log: whose kernels, and why not.

    The loss is not Liger's: our head is faster up to 8k tokens and needs no external weight (measured
    in benchmarks/).

    Raises:
        ModelError: Liger was asked for and is missing or does not know the architecture.
    """
    if asked is Kernels.none or (asked is Kernels.auto and not on_gpu):
        return f"{NOT_LIGERS} ({'model.kernels=none' if asked is Kernels.none else 'no GPU'})"
    if not on_gpu:
        raise ModelError(
            "`model.kernels` must be none or auto without a GPU, but is liger instead. Set "
            "model.kernels=auto."
        )
    if importlib.util.find_spec("liger_kernel") is None:
        if asked is Kernels.auto:
            return f"{NOT_LIGERS} (liger-kernel is not installed)"
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
            return f"{NOT_LIGERS} (it does not know {model_type})"
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

    Of a transformers whose wrappers do not say so, none.
    """
    return _packages(one for one in _wrappers(model) if not one["is_new_implementation"].cell_contents)


def leave_out_kernels(model: Any, on_gpu: bool) -> None:
    """Let plain torch compute, in place, what kernels of installed packages would without a GPU, and say so.

    transformers takes what can be imported (fla, mamba_ssm, causal_conv1d), whether
    or not there is what it runs on, and the first pass ends with "0 active drivers". Holds for all models of the
    process whose code is in the same files.
    """
    if on_gpu:
        return
    found = [one for one in _wrappers(model) if one["is_new_implementation"].cell_contents]
    for held in found:
        own = held["torch_function"].cell_contents
        held["implementation"].cell_contents = own
        held["applicable_params"].cell_contents = tuple(inspect.signature(own).parameters)
        held["is_new_implementation"].cell_contents = False
    if found:
        _LOG.info(
            "Layers of this model are computed in plain torch: kernels of %s are installed, but run on a GPU alone, "
            "and this rank has none.",
            " and ".join(_packages(found)),
        )


def _wrappers(model: Any) -> Iterator[dict[str, Any]]:
    """Yield the cells, by name, of every function of a model's files that transformers wraps round a kernel.

    The wrapper knows its package, whether that was found, and the function in plain torch.
    """
    names = {type(module).__module__ for module in model.modules()}
    for name in sorted(names & sys.modules.keys()):
        for function in vars(sys.modules[name]).values():
            if isinstance(function, FunctionType) and function.__closure__:
                held = dict(zip(function.__code__.co_freevars, function.__closure__, strict=True))
                if held.keys() >= _HELD:
                    yield held


def _packages(wrappers: Iterable[dict[str, Any]]) -> list[str]:
    """Return the packages of wrappers by the names that pip knows."""
    names = {str(one["package"].cell_contents) for one in wrappers}
    return sorted("flash-linear-attention" if name == "fla" else name.replace("_", "-") for name in names)


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
