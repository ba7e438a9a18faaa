"""What DeepSpeed and our own stage 2 hold of parameters, gradients and optimizer state on one rank. Pure arithmetic.

Units: bytes. N parameters, W ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainer.forecast.shapes import DecoderShape

if TYPE_CHECKING:
    from trainer.forecast.memory import RunShape, Weights


@dataclass(frozen=True, slots=True)
class States:
    """Bytes of parameters, gradients and optimizer state of one rank."""

    parameters: float
    optimizer: float
    kept: float
    """Gradients that exist all the time."""
    at_end: float
    """Gradients when backward is through."""
    at_step: float
    step: float
    """Copies that the optimizer step makes beside `at_step`."""


def states_of(run: RunShape, weights: Weights) -> States:
    """Return the states of a stage.

    A single micro-step keeps gradients in the parameters' dtype, and stages 1 and 2 alike free those of other ranks
    as they are reduced; DeepSpeed's step copies them flat and to fp32, that of stage 2 (engine/partitioned.py) copies
    nothing. Several accumulate in fp32: stage 1 is then DeepSpeed's BF16_Optimizer, which keeps all of them on every
    rank, and the bf16 ones until the step is over. What training began with, for `optim.base_decay`, is held where the
    masters are, in the parameters' dtype.
    """
    n, w, e = weights.num_trainable, run.world_size, run.element_bytes
    begun = e if run.holds_start else 0
    share = 1 if run.stage < 3 else w
    # Shards add up to as much wherever experts are: at stage 3 of everything, below it of the optimizer's state.
    held = n - (weights.num_experts * (1 - 1 / run.expert_parallel) if run.stage < 3 else 0)
    sharded = held * e + weights.frozen_bytes - weights.constant_bytes
    parameters = 0.0 if run.offload_param else sharded / share + weights.constant_bytes
    if run.stage == 0:
        # DeepSpeed wraps bf16 with fp32 copies of every gradient; fp32 has torch's optimizer as it is.
        own = n * ((12 if e == 2 else 8) + begun)
        return States(parameters, own, 0.0, n * e, n * e, n * 4 if e == 2 else 0)
    if run.offload_optimizer:
        return States(parameters, 0.0, 0.0, 0.0, 0.0, 0.0)
    # In fp32 stage 3's parameters are their own master weights.
    optimizer = n * ((8 if run.stage == 3 and e == 4 else 12) + begun) / w
    grad = 4 if run.accumulates else e
    if run.stage == 3:
        group = min(run.sub_group_size, n / w)
        kept = n * grad / w
        return States(parameters, optimizer, kept, kept, kept, group * (grad + (4 if grad == 2 else 0)))
    if run.stage == 1 and run.accumulates and e == 2:
        return States(parameters, optimizer, held * 4, held * (4 + e), held * (4 + e), 0.0)
    flat = 0.0 if run.is_partitioned else n / w * (4 if run.accumulates else e + (4 if e == 2 else 0))
    kept = n * grad / w if run.accumulates else 0.0
    return States(parameters, optimizer, kept, n * grad / w, n * grad / w, flat)


def buckets(shape: DecoderShape, run: RunShape, weights: Weights) -> float:
    """Return the buffers gradients are reduced from, as many as there are when reduction runs beside backward.

    Those of stage 2 are whole parameters: one that fills, as large as the embeddings, and two that travel. The fp32
    accumulation of stage 1 (BF16_Optimizer) and stage 0 have none.
    """
    if run.stage == 0 or (run.stage == 1 and run.accumulates and run.element_bytes == 2):
        return 0.0
    if run.is_partitioned:
        small = min(run.reduce_bucket_size, weights.num_trainable)
        large = min(max(small, shape.vocab_size * shape.hidden_size), weights.num_trainable)
        return float((large + 2 * small) * run.element_bytes)
    size = 4 if run.accumulates and run.stage < 3 else run.element_bytes
    return run.reduce_bucket_size * size * (2 if run.overlap_comm and run.stage < 3 else 1)
