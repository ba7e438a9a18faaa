"""How long an optimizer step takes: what its products, its bytes and its links take. Pure arithmetic.

Fitted to measured steps of Llama-3-8B and 70B shapes on one and two H100 and H200 (benchmarks/results), of which tests
hold it within 15 %. Dense decoders in bf16 with flash attention; there the GPU is the last to be ready. Steps of
mixtures, hybrids and windows wait for the host, and are not forecast.

Units: seconds, bytes, FLOPs. T tokens of a micro-batch on one rank, W ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainer.forecast.memory import FLASH, RunShape, Weights, attention_of
from trainer.forecast.shapes import DecoderShape

_HBM_SHARE = 0.8
"""Of the memory's rate that kernels get."""
_ATTENTION_SHARE = 0.6
"""Of the peak that flash attention gets, causal pairs counted once."""
_LAYER_PASSES = (40.0, 9.0)
"""Elements of hidden and of the gated MLP's width that a token moves in a layer beside products: norms, sums, rope and
SiLU, forward and backward, inputs and results."""
_FORWARD = 1 / 3
"""Share of a layer's work that recomputing it repeats."""
_UNFUSED = 1.8
"""Times that traffic without Liger's norms and gated MLPs."""
_LOGITS_PASSES = 5.0
_LOG_PROB_PASSES = {False: 22.0, True: 37.0}
"""Those of log-probabilities, which have no kernel of their own: with a frozen output layer, and with one that trains,
whose logits are made twice. Counted in the code (trainer/model/head/log_probs.py), two bytes each, and not measured."""
_ADAPTER_PASSES = 1.0
"""Elements of a linear layer's input and output that its adapter moves, fused into the layer."""
_OPTIMIZER_BYTES = {False: 172.0, True: 30.0}
"""A trained parameter of a rank: norms, clipping, AdamW, the copy into bf16; by DeepSpeed, and by stage 2's kernel."""
_BUCKET_BYTES = 4.0
"""A trained parameter, whole, that stage 2 moves into a bucket."""
_EXPOSED = {1: 0.5, 2: 0.4, 3: 0.29}
"""Share of the gradients' reduction, stage 2's gather with it, and of the gathers of ZeRO-3, that no product hides."""
_FIXED_S = 0.01


@dataclass(frozen=True, slots=True)
class Device:
    """A kind of GPU, and the links between those of a node; its peak is that of metrics/flops.py."""

    name: str
    peak_flops: float
    matmul_share: float
    """Of the peak that the products of a layer get."""
    hbm_bytes_s: float
    link_bytes_s: float
    """Of each GPU, in one direction of a ring."""


DEVICES = (
    Device("H200", 989.4e12, 0.6, 4.8e12, 360e9),
    Device("H100", 989.4e12, 0.575, 3.35e12, 360e9),
    Device("A100", 312e12, 0.7, 2.04e12, 230e9),  # not measured
)


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of one optimizer step, by what takes them."""

    matmuls: float
    attention: float
    memory: float
    """Norms, activations, adapters, logits and 4-bit weights made whole."""
    links: float
    """Of reductions and gathers, what nothing hides."""
    optimizer: float
    num_tokens: int
    """Of all ranks."""
    num_ranks: int

    @property
    def seconds(self) -> float:
        """Return the sum."""
        return self.matmuls + self.attention + self.memory + self.links + self.optimizer + _FIXED_S

    @property
    def tokens_per_s_per_gpu(self) -> float:
        """Return the rate of one GPU."""
        return self.num_tokens / self.seconds / self.num_ranks


def find_device(name: str) -> Device | None:
    """Return the kind of GPU that a name tells of, as nvidia-smi or a person says it."""
    return next((one for one in DEVICES if one.name in name.upper().replace("-", " ").split()), None)


def why_not_timed(shape: DecoderShape, run: RunShape) -> str | None:
    """Return what of a run makes its steps unlike those that were measured; None for one that can be forecast."""
    found = {
        "mixtures of experts": shape.experts > 0,
        "architectures that are counted by building them": bool(shape.notes),
        "float32": run.element_bytes != 2,
        "attention that is not flash attention": attention_of(shape, run) != FLASH,
        "offload": run.offload_optimizer or run.offload_param,
        "packs whose tokens ranks share": run.sequence_parallel > 1,
    }
    return next((what for what, is_so in found.items() if is_so), None)


def step_time(
    shape: DecoderShape,
    run: RunShape,
    weights: Weights,
    device: Device,
    mean_len: float,
    link_bytes_s: float | None = None,
) -> StepTime:
    """Return the time of a step of a run that `why_not_timed` has nothing against.

    Args:
        mean_len: sum(len^2) / sum(len) over documents: the length of a pack when each is one document.
        link_bytes_s: Of each GPU between nodes, where that is less than within one.
    """
    tokens, hbm = run.num_tokens, _HBM_SHARE * device.hbm_bytes_s
    head = shape.num_outputs * shape.hidden_size
    in_layers = shape.num_params - shape.embeddings - shape.head
    asked = run.checkpoint_layers
    again = (shape.num_layers if asked < 0 else min(asked, shape.num_layers)) / shape.num_layers
    # A frozen weight has no gradient; that of its input is made all the same.
    passes = 6 if weights.is_full else 4
    flops = tokens * (passes * (in_layers + head) + 2 * again * in_layers)
    if run.asks_log_probs and weights.is_full:
        flops += 2 * head * tokens  # logits are made again in backward
    pairs = 6 * mean_len * shape.q_dim * shape.num_layers * tokens * (1 + _FORWARD * again)
    wide, narrow = _LAYER_PASSES
    moved = 2 * shape.num_layers * tokens * (wide * shape.hidden_size + narrow * shape.ffn_width)
    moved *= (1 + _FORWARD * again) * (1 if run.is_fused else _UNFUSED)
    moved += (
        (_LOG_PROB_PASSES[weights.is_full] if run.asks_log_probs else _LOGITS_PASSES)
        * 2
        * shape.num_outputs
        * tokens
    )
    if weights.is_full:
        moved += 8 * head * tokens / max(run.loss_chunk_tokens, 1)
    if weights.adapter_width:
        sizes = sum((one.num_in + one.num_out) * one.count for one in shape.linears)
        moved += _ADAPTER_PASSES * 2 * sizes * tokens
    moved += 2 * weights.num_packed * 2.5 * (1 + again)  # made whole for forward and for backward
    moved += _BUCKET_BYTES * weights.num_trainable if run.is_partitioned else 0.0
    micro = run.num_micro_steps
    shards = run.world_size if run.stage and weights.is_full else 1
    return StepTime(
        matmuls=micro * flops / (device.peak_flops * device.matmul_share),
        attention=micro * pairs / (device.peak_flops * _ATTENTION_SHARE),
        memory=micro * moved / hbm,
        links=_links(run, weights, min(link_bytes_s or device.link_bytes_s, device.link_bytes_s)),
        optimizer=_OPTIMIZER_BYTES[run.is_partitioned] * weights.num_trainable / shards / hbm,
        num_tokens=tokens * micro * run.world_size,
        num_ranks=run.world_size,
    )


def _links(run: RunShape, weights: Weights, rate: float) -> float:
    """Return the seconds of reductions and gathers that nothing hides."""
    share, bf16 = (run.world_size - 1) / run.world_size, 2.0
    trained = bf16 * weights.num_trainable * share
    if run.stage == 3:
        everything = bf16 * (weights.num_trainable + weights.num_frozen) * share
        return run.num_micro_steps * _EXPOSED[3] * (2 * everything + trained) / rate
    if run.is_partitioned:  # every micro-batch is scattered, under its backward pass
        return _EXPOSED[2] * (run.num_micro_steps + 1) * trained / rate
    # All-reduced once a step, under the last backward; new weights are gathered after the optimizer.
    return (_EXPOSED[1] * 2 * trained + (trained if run.stage else 0.0)) / rate
