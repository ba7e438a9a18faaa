"""Batch arithmetic: one knob, everything else derived. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.errors import TopologyError


@dataclass(frozen=True, slots=True)
class BatchShape:
    """How the packs of one optimizer step are spread over ranks and micro-steps."""

    packs_per_step: int
    micro_batch_size: int
    num_micro_steps: int
    world_size: int
    seq_len: int


def batch_shape(global_batch_tokens: int, seq_len: int, micro_batch_size: int, world_size: int) -> BatchShape:
    """Derive packs a step and gradient accumulation from the global batch.

    Raises:
        TopologyError: The ranks do not divide the batch.
    """
    unit = seq_len * micro_batch_size * world_size
    if global_batch_tokens < unit or global_batch_tokens % unit:
        nearest = max(round(global_batch_tokens / unit), 1) * unit
        raise TopologyError(
            f"`train.global_batch_tokens` must be a multiple of ranks x micro batch x seq_len = "
            f"{world_size} x {micro_batch_size} x {seq_len} = {unit}, but is {global_batch_tokens} "
            f"instead. Set train.global_batch_tokens={nearest}."
        )
    return BatchShape(
        packs_per_step=global_batch_tokens // seq_len,
        micro_batch_size=micro_batch_size,
        num_micro_steps=global_batch_tokens // unit,
        world_size=world_size,
        seq_len=seq_len,
    )
