"""Import transformers' models and peft without what only other models, or nobody, needs."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any


def import_models() -> None:
    """Import what all models of transformers share, without scipy.

    Its losses of object detection import scipy.optimize where scipy is installed (lm-eval brings it): 1.5 s of each
    rank's start, and hundreds of files from a shared disk.
    Source: `python -X importtime -m trainer train`, transformers 5.24.
    """
    import transformers.utils

    asked = transformers.utils.is_scipy_available
    transformers.utils.is_scipy_available = lambda: False
    try:
        import transformers.modeling_utils
    finally:
        transformers.utils.is_scipy_available = asked


def import_peft() -> None:
    """Import peft, and with it bitsandbytes where that is installed, without torch's compiler.

    bitsandbytes has two functions for processors compiled while it is imported, which loads the compiler for all: 2.5 s
    of the start of each rank with an adapter. They are compiled where they are first called instead.
    Source: `python -X importtime -c "import peft"`, peft 0.21, bitsandbytes 0.50, torch 2.13.
    """
    if "bitsandbytes" in sys.modules:
        return
    import torch

    compile_now = torch.compile

    def compile_when_called(function: Any, **options: Any) -> Callable[..., Any]:
        compiled: list[Any] = []

        @functools.wraps(function)
        def call(*arguments: Any, **words: Any) -> Any:
            if not compiled:
                compiled.append(compile_now(function, **options))
            return compiled[0](*arguments, **words)

        return call

    torch.compile = compile_when_called  # type: ignore[assignment]
    try:
        import peft  # noqa: F401
    finally:
        torch.compile = compile_now


def causal_class(hf_config: Any) -> Any:
    """Return the class that a configuration is loaded as; None for one that transformers has no causal class of."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    import_models()
    known = type(hf_config) in MODEL_FOR_CAUSAL_LM_MAPPING
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(hf_config)] if known else None
