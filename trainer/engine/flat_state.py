"""Which numbers of which parameter are where in DeepSpeed's flat optimizer state, under every ZeRO stage.

What DeepSpeed keeps of a parameter, its float32 master and the optimizer's moments, lies in flat tensors of this rank.
Here they are given out as fragments with the parameter's name, and filled from fragments that any other ranks and stage
wrote. DeepSpeed's own checkpoints want the same ranks and stage again; its universal ones leave out what is frozen.

Source: deepspeed 0.19.8, utils/tensor_fragment.py, zero/stage_1_and_2.py, zero/stage3.py, bf16_optimizer.py,
fp16/unfused_optimizer.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as torch_dist
from torch import Tensor, nn

from trainer.checkpoint.shard_file import WEIGHT, Fragment
from trainer.checkpoint.shards import Shards
from trainer.engine.spread_layout import Spread
from trainer.errors import CheckpointError
from trainer.model.experts import size_of


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of a parameter's numbers in a flat tensor."""

    name: str
    begin: int
    """Where in the whole parameter, laid out flat."""
    offset: int
    """Where in the flat tensor."""
    count: int


@dataclass(frozen=True, slots=True)
class FlatState:
    """One flat tensor of master weights on this rank and what the optimizer keeps beside it."""

    master: Tensor
    pieces: tuple[Piece, ...]
    states: dict[Any, Any]
    """The optimizer's state of all its tensors, by tensor."""
    steps_with: torch.device | None
    """Where the optimizer wants its count of steps; None: on the CPU."""

    def fragments(self) -> Iterator[Fragment]:
        """Yield what is here, as views.

        Raises:
            CheckpointError: The optimizer keeps something of another size.
        """
        for kind, values in self._tensors().items():
            for piece in self.pieces:
                run = values.view(-1)[piece.offset : piece.offset + piece.count]
                yield Fragment(kind, piece.name, piece.begin, run)

    def scalars(self) -> dict[str, float]:
        """Return what the optimizer knows beside tensors of that size: its steps."""
        state = self.states.get(self.master, {})
        return {key: float(value) for key, value in state.items() if _is_scalar(value)}

    @torch.no_grad()
    def fill(self, shards: Shards) -> None:
        """Take over what shards hold of these parameters, in place; no collective.

        Raises:
            CheckpointError, OSError: A part of it is not there, or cannot be read.
        """
        names = [piece.name for piece in self.pieces]
        moments = {kind for name in names for kind in shards.kinds(name)} - {WEIGHT}
        state = self.states.get(self.master, {})
        tensors = {kind: state.get(kind, torch.zeros_like(self.master)) for kind in sorted(moments)}
        for kind, values in ((WEIGHT, self.master), *tensors.items()):
            for piece in self.pieces:
                run = values.view(-1)[piece.offset : piece.offset + piece.count]
                shards.fill(kind, piece.name, piece.begin, run)
        found = [shards.scalars.get(name, {}) for name in names]
        # They differ only where plain torch left a parameter without a gradient out of its steps.
        scalars = {
            key: max(values.get(key, 0.0) for values in found) for key in {k for v in found for k in v}
        }
        self.states.pop(self.master, None)
        if tensors:
            steps = {
                key: torch.tensor(value, dtype=torch.float32, device=self.steps_with)
                for key, value in scalars.items()
            }
            self.states[self.master] = steps | tensors

    def _tensors(self) -> dict[str, Tensor]:
        found = {WEIGHT: self.master}
        for key, value in self.states.get(self.master, {}).items():
            if isinstance(value, Tensor) and value.shape == self.master.shape:
                found[key] = value
            elif not _is_scalar(value):
                raise CheckpointError(
                    f"The optimizer's state must be a number or of the size of the weights, but {key} is not. Choose "
                    "another optimizer."
                )
        return found


def flat_states(ds: Any, stage: int, prefix: str, spread: Spread | None) -> list[FlatState]:
    """Return all flat tensors of a DeepSpeed engine on this rank.

    Args:
        prefix: Taken off the names of parameters.
        spread: How experts are spread over ranks: those of a rank are a part of the whole tensor.
    """
    names = {id(p): name.removeprefix(prefix) for p, name in ds.param_names.items()}
    optimizer = ds.optimizer
    inner = getattr(optimizer, "optimizer", optimizer)
    part = torch_dist.get_rank() % spread.size if spread is not None else 0
    on_device = any(group.get("fused") or group.get("capturable") for group in inner.param_groups)
    if stage == 3:
        layouts = _sharded(optimizer)
    elif stage > 0:
        layouts = _partitioned(optimizer)
    else:
        layouts = _replicated(optimizer)
    found = []
    for master, runs in layouts:
        pieces = []
        for parameter, begin, offset, count in runs:
            first = part * _own_numel(parameter) if hasattr(parameter, "whole_shape") else 0
            if count > 0:
                pieces.append(Piece(names[id(parameter)], first + begin, offset, count))
        device = master.device if on_device else None
        found.append(FlatState(master, tuple(pieces), inner.state, device))
    return found


def whole_shapes(ds: Any, prefix: str) -> dict[str, list[int]]:
    """Return the shape of every parameter that trains, whole, by name, in the order of the model."""
    return {
        name.removeprefix(prefix): list(size_of(p)) for p, name in ds.param_names.items() if p.requires_grad
    }


@torch.no_grad()
def spread_masters(ds: Any, stage: int) -> None:
    """Give the model what the masters hold. Collective: every rank."""
    optimizer = ds.optimizer
    if stage == 3:
        optimizer.checkpoint_event_prologue()  # what is gathered still, for reuse, would keep its old values
        for flat, master, parts in zip(
            optimizer.fp16_partitioned_groups_flat,
            optimizer.fp32_partitioned_groups_flat,
            optimizer.fp16_partitioned_groups,
            strict=True,
        ):
            flat.copy_(master)
            for held, now in zip(parts, optimizer.unflatten(flat, parts), strict=True):
                held.data = now.data
        persistent = optimizer.persistent_parameters
        if persistent:
            persistent[0].partition(persistent)
        optimizer.checkpoint_event_epilogue()  # gathers what every rank keeps whole
    elif stage > 0:
        optimizer.update_lp_params()
    elif hasattr(optimizer, "fp32_groups"):
        for own, masters in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
            torch._foreach_copy_(own, masters)


_Run = tuple[nn.Parameter, int, int, int]
"""Parameter, begin in it (in this rank's part of experts), offset in the flat tensor, count."""


def _sharded(optimizer: Any) -> Iterator[tuple[Tensor, list[_Run]]]:
    """Stage 3: every rank holds a part of every parameter, the last one with padding."""
    for parameters, master in zip(optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat, strict=True):
        runs, offset = [], 0
        for parameter in parameters:
            size = parameter.partition_numel()
            begin = optimizer._get_param_partition_rank(parameter) * size
            runs.append((parameter, begin, offset, min(size, parameter.ds_numel - begin)))
            offset += size
        yield master, runs


def _partitioned(optimizer: Any) -> Iterator[tuple[Tensor, list[_Run]]]:
    """Stages 1 and 2: parameters of a group one after the other, cut into as many parts as ranks."""
    if hasattr(optimizer, "bit16_groups"):
        groups, masters = optimizer.bit16_groups, optimizer.single_partition_of_fp32_groups
    else:  # BF16_Optimizer
        groups, masters = optimizer.bf16_groups, optimizer.fp32_groups_flat_partition
    for parameters, master in zip(groups, masters, strict=True):
        runs = []
        for parameter in parameters:
            mapping = parameter._hp_mapping
            if mapping is not None:
                own, flat = mapping.lp_fragment_address, mapping.hp_fragment_address
                runs.append((parameter, own.start, flat.start, flat.numel))
        yield master, runs


def _replicated(optimizer: Any) -> Iterator[tuple[Tensor, list[_Run]]]:
    """Stage 0: every rank holds all; in bf16 with a master of each."""
    groups = [group["params"] for group in optimizer.param_groups]
    if hasattr(optimizer, "fp32_groups"):
        groups = optimizer.fp16_groups
    masters = getattr(optimizer, "fp32_groups", groups)
    for own, held in zip(groups, masters, strict=True):
        for parameter, master in zip(own, held, strict=True):
            yield master, [(parameter, 0, 0, parameter.numel())]


def _own_numel(parameter: Any) -> int:
    """Return the numbers of this rank's part of experts."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _is_scalar(value: Any) -> bool:
    return isinstance(value, int | float) or (
        isinstance(value, Tensor) and value.numel() == 1 and value.dim() == 0
    )
