"""Read full parameters out of ZeRO shards, one at a time, without ranks or GPUs.

Source: deepspeed.utils.zero_to_fp32 in lazy mode; shards are memory-mapped, so the memory needed is that
of one parameter.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.engine.spread_layout import SPREAD, Spread
from trainer.engine.states import MODULE_PREFIX, TAG, load_state
from trainer.errors import CheckpointError
from trainer.model.choice_bias import HELD

MODEL_FILE = "mp_rank_00_model_states.pt"


def stream_parameters(checkpoint: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, full tensor) of a checkpoint in the model's own names; shared tensors once.

    Trained tensors come as the fp32 master weights.

    Raises:
        CheckpointError: Experts were spread over ranks, and the shards do not hold all of them.
    """
    folder = checkpoint / TAG
    model_file = next(iter(sorted(folder.glob("*mp_rank_00_model_states.pt"))), None)
    if model_file is not None:  # of rank 0, or of all
        states = load_state(model_file, is_mapped=True)
        if SPREAD in states:
            yield from _spread_parameters(folder, states, Spread.of(states[SPREAD]))
            return
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
    states = load_state(folder / MODEL_FILE, is_mapped=True)
    return dict(_without_aliases(states["module"]))


def _without_aliases(module: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Drop tensors that share another's storage, such as a tied output layer."""
    seen: set[tuple[int, tuple[int, ...]]] = set()
    for name, tensor in module.items():
        key = (tensor.untyped_storage().data_ptr(), tuple(tensor.shape))
        if key not in seen:
            seen.add(key)
            yield name, tensor


def _spread_parameters(folder: Path, states: dict[str, Any], spread: Spread) -> Iterator[tuple[str, Tensor]]:
    """Yield the same of a model whose experts were spread over ranks: DeepSpeed's function takes no groups of them."""
    parts = _parts(folder, states["param_shapes"], spread)
    for name, part in parts.items():
        if not spread.is_expert(name):
            yield spread.base_name(name), part.of(part.shards)

    def whole(name: str) -> Tensor:
        part, size = parts[name], spread.size
        return torch.cat([part.of(part.shards[rank::size]) for rank in range(size)])

    for layer in spread.layers:
        for name, make in layer.tensors(whole).items():
            yield name, make().contiguous()
    for name in states["buffer_names"]:
        if name in states["module"]:
            yield spread.base_name(name.removeprefix(MODULE_PREFIX)), states["module"][name]


@dataclass(frozen=True, slots=True)
class _Part:
    """Where a parameter is in the flat shards of its group."""

    name: str
    shape: torch.Size
    begin: int
    """Below stage 3 in the shards of all ranks one after the other; at stage 3 in each."""
    shards: Sequence[Tensor]
    """Of every rank, in order."""
    is_in_each: bool
    """Stage 3: every rank has a piece of it."""

    def of(self, shards: Sequence[Tensor]) -> Tensor:
        """Return the parameter, cut out of the shards of those ranks that share it."""
        count, begin, found = self.shape.numel(), self.begin, []
        size = -(-count // len(shards)) if self.is_in_each else count
        for shard in shards:
            found.append(shard[max(begin, 0) : max(begin + size, 0)])
            begin -= 0 if self.is_in_each else shard.numel()
        flat = torch.cat(found)
        if flat.numel() < count:
            raise CheckpointError(
                f"The shards of a checkpoint must hold all {count} numbers of {self.name}, but hold {flat.numel()} "
                "instead. Bring the checkpoint back from its source."
            )
        return flat[:count].view(self.shape)


def _parts(folder: Path, groups: Sequence[dict[str, torch.Size]], spread: Spread) -> dict[str, _Part]:
    """Return where every trained parameter is, by its name below the causal model; files stay on disk."""
    files = {int(re.findall(r"zero_pp_rank_(\d+)_", p.name)[0]): p for p in folder.glob("*_optim_states.pt")}
    loaded = [load_state(files[rank], is_mapped=True)["optimizer_state_dict"] for rank in sorted(files)]
    if not loaded or len(loaded) % spread.size:
        raise CheckpointError(
            f"{folder} must hold a shard of every rank, a multiple of {spread.size}, but holds {len(loaded)} instead. "
            "Bring the checkpoint back from its source."
        )
    is_in_each = "fp32_flat_groups" in loaded[0]
    key = "fp32_flat_groups" if is_in_each else "single_partition_of_fp32_groups"
    parts = {}
    for index, shapes in enumerate(groups):
        begin, shards = 0, [state[key][index] for state in loaded]
        for full_name, shape in shapes.items():
            name, count = full_name.removeprefix(MODULE_PREFIX), torch.Size(shape).numel()
            parts[name] = _Part(name, torch.Size(shape), begin, shards, is_in_each)
            num_sharing = len(loaded) // (spread.size if spread.is_expert(name) else 1)
            begin += -(-count // num_sharing) if is_in_each else count
    return parts
