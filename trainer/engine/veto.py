"""Refusing an update by its gradient norm: DeepSpeed's optimizers treat it as one that is not finite.

They work the norm out and update in one call. So what they get for a norm beyond the bound is infinity, and what they
do then, on every rank, is what they do after an overflow: clear all gradients and change nothing.

Source: deepspeed 0.19.8, `step` of zero/stage_1_and_2.py, zero/stage3.py, bf16_optimizer.py and fp16/.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch


@contextlib.contextmanager
def vetoing(optimizer: Any, most: float) -> Iterator[list[float]]:
    """Refuse an update inside whose norm is more than `most`; yields the norms that were refused."""
    refused: list[float] = []

    def judged(norm: Any) -> Any:
        if not float(norm) > most or not math.isfinite(float(norm)):
            return norm
        refused.append(float(norm))
        return torch.full_like(norm, math.inf) if isinstance(norm, torch.Tensor) else math.inf

    if not math.isfinite(most):
        yield refused
        return
    holder, name, replaced = _place_of_norm(optimizer, judged)
    had = vars(holder).get(name)
    setattr(holder, name, replaced)
    try:
        yield refused
    finally:
        if had is None:
            delattr(holder, name)
        else:
            setattr(holder, name, had)


def _place_of_norm(optimizer: Any, judged: Callable[[Any], Any]) -> tuple[Any, str, Callable[..., Any]]:
    """Return where an optimizer gets its norm from, and what gives it the judged one."""
    from deepspeed.runtime.utils import combine_grad_norm_groups

    from trainer.engine.flat import FlatZeroOptimizer

    if isinstance(optimizer, FlatZeroOptimizer):
        own = optimizer._norm
        return optimizer, "_norm", lambda *words: judged(own(*words))
    if hasattr(optimizer, "scaled_global_norm"):
        scaled = optimizer.scaled_global_norm
        return optimizer, "scaled_global_norm", lambda *words, **named: judged(scaled(*words, **named))
    if hasattr(optimizer, "_get_norm_groups"):
        groups = optimizer._get_norm_groups

        def judged_groups() -> Any:
            found = groups()
            norm = combine_grad_norm_groups(found)
            return found if judged(norm) is norm else [torch.full_like(torch.as_tensor(norm), math.inf)]

        return optimizer, "_get_norm_groups", judged_groups
    # That of stage 0 in bf16 asks a function of its module; in fp32 there is none, and the engine judges the norm.
    module = sys.modules[type(optimizer).__module__]
    name = next(name for name in ("get_global_norm", "get_global_norm_of_tensors") if hasattr(module, name))
    whole = getattr(module, name)
    return module, name, lambda *words, **named: judged(whole(*words, **named))
