"""Config sections for the optimizer, the schedule and ZeRO."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any


@dataclass
class OptimConfig:
    """AdamW."""

    lr: float = 1e-5
    """Peak learning rate."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    """Adam betas."""
    eps: float = 1e-8
    """Adam epsilon."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices. Norms, biases and embeddings have none."""
    decay_embeddings: bool = False
    """Decay embedding matrices too."""
    base_decay: float = 0.0
    """Decoupled decay of all that trains towards what it began as, on the float32 masters after each update:
    w <- w - lr * base_decay * (w - w0). Of a way from the base that no gradient renews, exp(-base_decay * S) is left, S
    the sum of the learning rates of all steps: 1 / S is a strong pull, so a value is for one length of run. At most
    1 / lr. Takes 2 bytes a trained parameter in bf16 and 4 in fp32, sharded (L2-SP, arXiv:1802.01483; decoupled as the
    decay of AdamW is, arXiv:1711.05101)."""
    clip_norm: float = 1.0
    """Largest global gradient norm; 0 switches clipping off."""


class ScheduleName(Enum):
    """Shape of the learning rate over optimizer steps."""

    cosine = "cosine"
    """Warm-up, then half a cosine."""
    linear = "linear"
    """Warm-up, then a line."""
    constant = "constant"
    """Warm-up, then the peak."""
    wsd = "wsd"
    """Warm-up, stable, decay."""
    infinite = "infinite"
    """Warm-up, cooldown, constant, anneal."""


@dataclass
class ScheduleConfig:
    """Learning rate over the run. Fractions are of all optimizer steps."""

    name: ScheduleName = ScheduleName.cosine
    """cosine, linear, constant, wsd (warm-up, stable, decay) or infinite (warm-up, cooldown, constant, anneal)."""
    warmup_frac: float = 0.01
    """Linear warm-up from 0."""
    warmup_steps: int | None = None
    """Warm-up in steps; wins over warmup_frac."""
    final_frac: float = 0.1
    """Last learning rate as a share of the peak (constant ignores it)."""
    decay_frac: float = 0.1
    """wsd and infinite: share of the run for the last linear decay. Range (0, 1]."""
    cooldown_frac: float = 0.6
    """infinite: share of the run for the cosine cooldown after warm-up (arXiv:2403.08763, section 7)."""
    constant_frac: float = 0.55
    """infinite: learning rate of the constant phase as a share of the peak (arXiv:2403.08763)."""


class Offload(Enum):
    """Where a part of the training state lives."""

    none = "none"
    """On the GPU."""
    cpu = "cpu"
    """In host memory."""


class ReduceDtype(Enum):
    """Dtype of gradients on the wire."""

    bf16 = "bf16"
    """Half the bytes."""
    fp32 = "fp32"
    """Whole precision."""


@dataclass
class ZeroConfig:
    """DeepSpeed ZeRO. Counts are elements, not bytes."""

    stage: int | None = 3
    """0 replicates all, 1 shards optimizer state, 2 also gradients, 3 also parameters; null (zero=auto): of 1 to 3 that
    fit, the one whose step is shortest by the forecast of `palimpsest plan`; the lowest that fits where it forecasts no
    time, 1 where a GPU's memory is not known."""
    dtype: str = "auto"
    """`bf16` (with fp32 master weights), `fp32` (everything), or `auto`: bf16 on GPUs of compute capability 8.0 and on
    processors with instructions for it, else fp32. Chosen where the first rank is, before the run is frozen."""
    overlap_comm: bool = True
    """Communicate beside the computation. False puts ZeRO-3 gathers on the compute stream."""
    reduce_bucket_size: int = 200_000_000
    """Elements reduced at once; at stage 2 whole parameters, at least one."""
    prefetch_bucket_size: int = 440_000_000
    """Stage 3: elements gathered ahead; about two decoder layers of an 8B model."""
    max_live_parameters: int = 3_000_000_000
    """Stage 3: gathered elements kept at once. 0 would switch prefetch off."""
    max_reuse_distance: int = 1_000_000_000
    """Stage 3: keep a parameter that is used again within so many elements."""
    persistence_threshold: int = 1_000_000
    """Stage 3: parameters up to this size stay replicated."""
    sub_group_size: int = 1_000_000_000
    """Stage 3: elements the optimizer updates at once."""
    reduce_dtype: ReduceDtype = ReduceDtype.bf16
    """Dtype of gradient reduction between ranks. Accumulation is fp32 either way."""
    expert_parallel: int = 1
    """Ranks that share the experts of a layer, neighbours; 1 keeps all experts of a layer together. Each then holds
    and trains one part of them, and tokens travel to the ranks of their experts instead of weights to the tokens.
    Stages 1 to 3, all weights of Mixtral, Qwen2-MoE, Qwen3-MoE, Qwen3.5-MoE, DeepSeek-V2 and V3, MiniMax-M3. Below
    stage 3 a rank reads the whole model before it keeps its part. Divides the ranks, and the experts of a layer."""
    offload_optimizer: Offload = Offload.none
    """Stages 1 to 3: keep optimizer state in host memory."""
    offload_param: Offload = Offload.none
    """Stage 3: keep parameters in host memory."""
    ds_config: str | None = None
    """Path of another trainer's DeepSpeed file: its keys are taken into the fields that say the same, `auto` leaves
    them, a word of the command line is over it. Read when the run is composed and not needed again."""
    extra: dict[str, Any] = field(default_factory=dict)
    """More keys of DeepSpeed's configuration: those that take effect here and that no field decides, merged last.
    With any of them DeepSpeed's own classes reduce gradients, which is slower at stages 1 and 2. Example:
    {zero_optimization: {zero_hpz_partition_size: 8}}."""
