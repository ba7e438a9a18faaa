"""Read full parameters out of ZeRO shards, one at a time, without ranks or GPUs.

Source: deepspeed.utils.zero_to_fp32 in lazy mode; shards are memory-mapped, so the memory needed is that
of one parameter.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from trainer.engine.states import TAG, load_state
from trainer.model.choice_bias import HELD

MODULE_PREFIX = "lm."
"""Name of the model inside the objective that the engine wraps."""


def stream_parameters(checkpoint: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, full tensor) of a checkpoint in the model's own names; shared tensors once.

    Trained tensors come as the fp32 master weights.
    """
    folder = checkpoint / TAG
    seen: set[int] = set()
    for name, lazy in _lazy_state_dict(checkpoint, folder).items():
        if id(lazy) in seen or name == HELD:
            continue
        seen.add(id(lazy))
        tensor = lazy if isinstance(lazy, Tensor) else lazy.contiguous()
        yield name.removeprefix(MODULE_PREFIX), tensor.detach()


def _lazy_state_dict(checkpoint: Path, folder: Path) -> dict[str, Any]:
    if list(folder.glob("*_optim_states.pt")):
        for path in sorted(folder.glob("*_states.pt")):
            load_state(path, is_mapped=True)  # DeepSpeed's function unpickles whatever is there
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            lazy = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), tag=TAG, lazy_mode=True)
        return dict(lazy)
    # Stage 0 writes one ordinary file.
    states = load_state(folder / "mp_rank_00_model_states.pt", is_mapped=True)
    return dict(_without_aliases(states["module"]))


def _without_aliases(module: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Drop tensors that share another's storage, such as a tied output layer."""
    seen: set[tuple[int, tuple[int, ...]]] = set()
    for name, tensor in module.items():
        key = (tensor.untyped_storage().data_ptr(), tuple(tensor.shape))
        if key not in seen:
            seen.add(key)
            yield name, tensor
