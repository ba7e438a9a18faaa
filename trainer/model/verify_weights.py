"""Compare loaded parameters with the files they came from, by value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from safetensors import safe_open
from torch import nn

from trainer.errors import SelfCheckError
from trainer.model.base_files import BaseFiles
from trainer.model.tune.quantise import holds

NUM_MATRICES = 8


def verify_weights(
    model: Any,
    base: BaseFiles,
    gather: Callable[[Sequence[nn.Parameter]], AbstractContextManager[None]],
) -> int:
    """Compare a sample of parameters with the safetensors files; return how many. Collective at ZeRO-3.

    The sample: the first and last parameters and evenly spread ones between. Every rank compares, so
    a rank that got other weights than its neighbours is found too. What was packed into 4 bits must be what
    packing the file's tensor gives. Nothing is compared with a base that has no safetensors files here; tensors that
    transformers converted are left out.

    Raises:
        SelfCheckError: A parameter differs from its file.
    """
    found = ((name, parameter, base.file_of(name)) for name, parameter in model.named_parameters())
    named = [(name, parameter, place) for name, parameter, place in found if place is not None]
    if not named:
        return 0
    count = min(NUM_MATRICES, len(named))
    chosen = sorted({round(i * (len(named) - 1) / max(count - 1, 1)) for i in range(count)})
    for index in chosen:
        name, parameter, (key, file) = named[index]
        with gather([parameter]):
            with safe_open(str(file), framework="pt") as tensors:
                expected = tensors.get_tensor(key)
            if not holds(parameter, expected):
                raise SelfCheckError(
                    f"The loaded parameter {name} must equal {key} in {file.name}, but differs. "
                    "The model would not train from the weights you named; report this with versions."
                )
    return len(chosen)
