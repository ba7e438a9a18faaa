"""The DeepSpeed boundary: what deepspeed.initialize returns as a small typed engine.

Gradients: the caller passes each micro-batch a loss already divided by the tokens of the whole step and
multiplied by the ranks, because DeepSpeed averages gradients over ranks.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as torch_dist
from torch import Tensor, nn

from trainer.checkpoint.shard_file import BUFFER, Fragment
from trainer.checkpoint.shards import Shards
from trainer.engine.flat_state import flat_states, spread_masters, whole_shapes
from trainer.engine.spread_layout import SPREAD, Spread
from trainer.engine.squares import sum_of_squares
from trainer.engine.update import pull_after_steps
from trainer.engine.veto import vetoing
from trainer.errors import CheckpointError
from trainer.model.head.ask import Ask
from trainer.optim.base_pull import BasePull

MODULE_PREFIX = "lm."
"""Name of the model inside the objective that the engine wraps."""
A = TypeVar("A")


@dataclass(frozen=True, slots=True)
class Held:
    """A rank's part of what is saved."""

    fragments: list[Fragment]
    """Views of the engine's own tensors: write them before the next step."""
    facts: dict[str, Any]
    """What there is to know beside tensors, as plain values."""


class Engine:
    """A model, its optimizer and their ZeRO state. Every method with collectives needs every rank."""

    def __init__(self, ds: Any, stage: int, spread: Spread | None = None, summed_over: int = 1) -> None:
        """Take what deepspeed.initialize returned, and how experts are spread over ranks, if they are.

        Args:
            summed_over: Ranks whose gradients are summed; 1 where the mean is taken.
        """
        self._ds = ds
        self.stage = stage
        self.module: nn.Module = ds.module
        self.has_collective_forward = stage == 3 or spread is not None
        self._spread = spread
        self._summed_over = summed_over
        self._is_partial = not all(p.requires_grad for p in self.module.parameters())
        self._pull: BasePull | None = None
        ds.clip_fp32_gradients = lambda: None  # of stage 0 in fp32 alone, which `step` clips

    def forward(self, ask: Ask[A], **inputs: Any) -> A:
        """Run the model on packed inputs and return its answer. Collective under ZeRO-3."""
        return cast(A, self._ds(ask=ask, **inputs))

    def backward(self, loss: Tensor, is_last: bool) -> None:
        """Accumulate gradients of one micro-batch; the last one of a step is reduced. Collective."""
        self._ds.set_gradient_accumulation_boundary(is_last)
        self._ds.backward(loss / self._summed_over, scale_wrt_gas=False)

    def step(self, most: float = math.inf) -> tuple[float, bool]:
        """Apply one optimizer step; return (global gradient norm, whether it was applied). Collective.

        One whose norm is more than `most` is not applied; its norm is returned.

        A step with non-finite gradients is skipped on all ranks, since the norm is global; then the norm is
        returned as NaN and the flag is False.
        """
        norm = self._plain_norm()
        if norm is not None and not norm <= most:
            self.module.zero_grad(set_to_none=True)  # DeepSpeed has no check of its own here
            return norm if math.isfinite(norm) else float("nan"), False
        if norm is not None:
            self._clip(norm)
        with vetoing(self._ds.optimizer, most if norm is None else math.inf) as refused:
            self._ds.step()
        if refused:
            return refused[0], False
        applied = bool(self._ds.was_step_applied())
        if norm is None:
            norm = self._ds.get_global_grad_norm()
        value = float("nan") if norm is None else float(norm)
        if norm is not None and value < 0:  # DeepSpeed's mark of an invalid norm
            value = float("nan")
        return value, applied and math.isfinite(value)

    def decay_to_start(self, decay: float) -> int:
        """Pull what trains towards what it is now, after every step from here on; return the bytes that takes here.

        Before a checkpoint is taken over: it holds other weights.

        Args:
            decay: `optim.base_decay`.
        """
        masters = [flat.master for flat in flat_states(self._ds, self.stage, MODULE_PREFIX, self._spread)]
        dtype = next(p.dtype for p in self.module.parameters() if p.requires_grad)
        self._pull = BasePull(masters, dtype, decay)
        pull_after_steps(getattr(self._ds.optimizer, "optimizer", self._ds.optimizer), self._pull)
        return self._pull.num_bytes

    def stop_decay_to_start(self) -> None:
        """Leave what trains to its gradients from here on."""
        if self._pull is not None:
            self._pull.stop()

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of all groups for the next step."""
        for group in self._ds.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_factor", 1.0)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Run without gradients and dropout, then go back to training."""
        self._ds.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self._ds.train()

    def release(self) -> None:
        """Let go of a model that was only asked; nothing can be asked any more. Collective under ZeRO-3."""
        if self.stage == 3:
            self._ds.destroy()
        del self._ds, self.module

    @contextlib.contextmanager
    def differentiating(self) -> Iterator[nn.Module]:
        """Give the module to ask for gradients of what flows through it: without dropout, and none of a parameter kept.

        DeepSpeed is passed by, so that nothing is reduced; ZeRO-3 gathers by hooks on the module. Use
        `torch.autograd.grad`. Collective under ZeRO-3.
        """
        self._ds.eval()
        # Of mixtures that DeepSpeed knows (Mixtral, Qwen2-MoE, Qwen3-MoE) ZeRO-3 reduces a layer's gradients by a hook
        # on the layer, which also runs where none of a parameter is asked for: it fails, or makes and reduces zeros.
        handles = getattr(self._ds.optimizer, "_leaf_module_hooks", ()) if self.stage == 3 else ()
        hooks = [(found, handle.id) for handle in handles if (found := handle.hooks_dict_ref()) is not None]
        taken = [(found, number, found.pop(number)) for found, number in hooks if number in found]
        try:
            yield self.module
        finally:
            for found, number, hook in taken:
                found[number] = hook
            self._ds.train()
            if self.stage == 3:  # its hooks keep what a backward pass that ended early had gathered
                self._ds.empty_partition_cache()

    def held(self) -> Held:
        """Return this rank's part of what trains and of what else a model remembers, without touching a disk."""
        flats = flat_states(self._ds, self.stage, MODULE_PREFIX, self._spread)
        is_first = not torch_dist.is_initialized() or torch_dist.get_rank() == 0
        if self.stage == 0 and not is_first:  # every rank holds all
            return Held([], {})
        facts: dict[str, Any] = {}
        facts["scalars"] = {piece.name: flat.scalars() for flat in flats for piece in flat.pieces}
        fragments = [fragment for flat in flats for fragment in flat.fragments()]
        if is_first:
            facts["shapes"] = whole_shapes(self._ds, MODULE_PREFIX)
            fragments += [Fragment(BUFFER, name, 0, value) for name, value in self._buffers().items()]
            if self._spread is not None:
                facts[SPREAD] = self._spread.described()
        return Held(fragments, facts)

    def has_finite_weights(self) -> bool:
        """Tell whether this rank's part of what trains holds only finite numbers; at stages below 3 its part is all."""
        return all(_is_finite(p) for p in self.module.parameters() if p.requires_grad)

    def fill(self, shards: Shards) -> None:
        """Take over what a checkpoint holds, whatever ranks and stage wrote it. `settle` must follow; no collective.

        Raises:
            CheckpointError: It holds other parameters, or not all of these.
            OSError, SafetensorError: A file cannot be read.
        """
        own = whole_shapes(self._ds, MODULE_PREFIX)
        if {name: tuple(shape) for name, shape in own.items()} != shards.shapes:
            differ = sorted(set(own) ^ set(shards.shapes)) or list(own)
            raise CheckpointError(
                f"A checkpoint must hold what trains here, but {differ[0]} is not in both or has another shape. Go on "
                "with the model, the adapter and the `zero.expert_parallel` that it was saved with."
            )
        for flat in flat_states(self._ds, self.stage, MODULE_PREFIX, self._spread):
            flat.fill(shards)
        for name, value in self._buffers().items():
            with torch.no_grad():
                value.copy_(shards.buffer(name))

    def settle(self) -> None:
        """Let the model compute with what was filled in on all ranks. Collective."""
        spread_masters(self._ds, self.stage)

    def load(self, shards: Shards) -> None:
        """Take over what a checkpoint holds, and compute with it. Collective; raises as `fill` does."""
        self.fill(shards)
        self.settle()

    def _buffers(self) -> dict[str, Tensor]:
        """Return what the model remembers beside parameters, by name; nothing of a base that is frozen."""
        if self._is_partial:
            return {}
        return {
            name.removeprefix(MODULE_PREFIX): buffer
            for name, buffer in self.module.named_buffers()
            if _is_persistent(self.module, name)
        }

    def _clip(self, norm: float) -> None:
        """Scale the gradients of fp32 at stage 0, which DeepSpeed would by a norm that a CPU adds up badly."""
        most = float(self._ds.gradient_clipping())
        if 0 < most < norm:
            grads = [p.grad for p in self.module.parameters() if p.grad is not None]
            torch._foreach_mul_(grads, most / (norm + 1e-6))

    def _plain_norm(self) -> float | None:
        """Return the gradient norm where DeepSpeed reports none: fp32 at stage 0."""
        if self.stage != 0 or hasattr(self._ds.optimizer, "_global_grad_norm"):
            return None
        squares = [sum_of_squares(p.grad) for p in self.module.parameters() if p.grad is not None]
        return math.sqrt(float(torch.stack(squares).sum())) if squares else None


class _Undivided(nn.Module):
    """Stands where DeepSpeed's engine stands, for a model that is only evaluated, or differentiated past it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, **inputs: Any) -> Any:
        return self.module(**inputs)


def undivided(model: nn.Module, stage: int = 0) -> Engine:
    """Return an engine that asks a model of this process past DeepSpeed; at stage 0 no other rank takes part."""
    return Engine(_Undivided(model), stage)


def _is_persistent(module: nn.Module, name: str) -> bool:
    owner, _, key = name.rpartition(".")
    return key not in module.get_submodule(owner)._non_persistent_buffers_set


def _is_finite(parameter: nn.Parameter) -> bool:
    """Look at a parameter, or at this rank's shard of it without the padding, which nobody ever writes."""
    values = parameter.detach()
    if hasattr(parameter, "ds_tensor"):
        shard, num_values = parameter.ds_tensor, int(getattr(parameter, "ds_numel", 0))
        group = getattr(parameter, "ds_process_group", None)  # experts that are spread have one of their own
        begin = torch_dist.get_rank(group) * shard.numel() if torch_dist.is_initialized() else 0
        values = shard.detach()[: max(min(shard.numel(), num_values - begin), 0)]
    if not values.numel():
        return True
    # Of a NaN both are NaN; needs no memory.
    low, high = torch.aminmax(values)
    return bool(torch.isfinite(low) and torch.isfinite(high))
