"""Batch arithmetic: one knob, everything else derived. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.config.check_sequence import batch_rule
from trainer.errors import TopologyError


@dataclass(frozen=True, slots=True)
class BatchShape:
    """How the packs of one optimizer step are spread over ranks and micro-steps."""

    packs_per_step: int
    micro_batch_size: int
    num_micro_steps: int
    world_size: int
    seq_len: int
    sequence_parallel: int = 1
    """Ranks that share each pack."""

    @property
    def num_places(self) -> int:
        """Return the packs that a step has room for; more than it has where ranks do not divide them."""
        return self.micro_batch_size * self.num_micro_steps * self.world_size // self.sequence_parallel


def batch_shape(
    global_batch_tokens: int,
    seq_len: int,
    micro_batch_size: int,
    world_size: int,
    may_be_uneven: bool = False,
    sequence_parallel: int = 1,
) -> BatchShape:
    """Derive packs a step and gradient accumulation from the global batch.

    Args:
        may_be_uneven: Some ranks may have fewer packs in a step than others, as when nodes are taken away.
        sequence_parallel: Ranks that share each pack; divides all.
    Raises:
        TopologyError: The ranks do not divide the batch, and must.
    """
    num_sharers = world_size // sequence_parallel
    unit = seq_len * micro_batch_size * num_sharers
    is_even = global_batch_tokens >= unit and global_batch_tokens % unit == 0
    if not is_even and not (may_be_uneven and global_batch_tokens % seq_len == 0):
        nearest = max(round(global_batch_tokens / unit), 1) * unit
        raise TopologyError(
            f"`train.global_batch_tokens` must be {batch_rule(sequence_parallel)} = "
            f"{num_sharers} x {micro_batch_size} x {seq_len} = {unit}, but is {global_batch_tokens} "
            f"instead. Set train.global_batch_tokens={nearest}."
        )
    return BatchShape(
        packs_per_step=global_batch_tokens // seq_len,
        micro_batch_size=micro_batch_size,
        num_micro_steps=-(-global_batch_tokens // unit),
        world_size=world_size,
        seq_len=seq_len,
        sequence_parallel=sequence_parallel,
    )
