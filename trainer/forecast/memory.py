"""Peak memory of one GPU over an optimizer step, part by part. Pure arithmetic.

The peak is the largest of four moments: the loss head at the end of forward, its backward, the backward of a
decoder layer, and the optimizer. What DeepSpeed allocates is read from its source (0.19.8,
runtime/zero/stage_1_and_2.py, stage3.py, bf16_optimizer.py, fp16/unfused_optimizer.py); nothing is fitted to a case.
benchmarks/results holds the measured peaks that tests compare with.

Units: bytes. N parameters, W ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainer.forecast.activations import (
    bend_bytes,
    checkpoint_bytes,
    layer_backward_bytes,
    layer_bytes,
    log_prob_bytes,
    mask_bytes,
    score_backward_bytes,
    score_bytes,
)
from trainer.forecast.shapes import DecoderShape
from trainer.forecast.states import buckets, states_of

GIB = 1024**3
ERROR_FRAC = 0.03
"""Share of a GPU's memory that a forecast may be off by: tests hold it within so much of measured peaks."""
NF4_PACKED_BYTES = 0.5
NF4_CONSTANT_BYTES = 0.127 / 8
"""Bytes of a weight in NF4 with double quantisation: 4 bits, and its share of the constants of its block, which ZeRO-3
does not shard (arXiv:2305.14314, section 3)."""


@dataclass(frozen=True, slots=True)
class RunShape:
    """What of a configuration decides memory, in plain values."""

    stage: int
    world_size: int
    micro_batch_size: int
    seq_len: int
    num_micro_steps: int
    checkpoint_layers: int
    """-1 all, else a count, as `model.checkpoint_layers`."""
    loss_chunk_tokens: int
    element_bytes: int = 2
    """Bytes of a parameter: 2 in bf16, 4 in fp32."""
    is_flash: bool = True
    """Flash attention, where the model has what `auto` finds."""
    names_flash: bool = False
    """A flash attention is asked for by name, and so one that the model has."""
    is_eager: bool = False
    """Eager attention, whatever the model has."""
    is_fused: bool = True
    """Norms and gated MLPs by Liger."""
    overlap_comm: bool = True
    reduce_bucket_size: int = 200_000_000
    prefetch_bucket_size: int = 440_000_000
    max_live_parameters: int = 3_000_000_000
    sub_group_size: int = 1_000_000_000
    expert_parallel: int = 1
    """Ranks that share the experts of a layer."""
    sequence_parallel: int = 1
    """Ranks that share the tokens of a pack."""
    offload_optimizer: bool = False
    offload_param: bool = False
    has_extra: bool = False
    """DeepSpeed's own classes do all (`zero.extra`)."""
    asks_base: bool = False
    """Replay is compared with the base (`replay.kl.beta`)."""
    distils: bool = False
    """A teacher's top tokens are compared in the loss head (objective=distill)."""
    asks_log_probs: bool = False
    """The loss is of log-probabilities of answers (objective=preference), which take more of each logit."""
    holds_start: bool = False
    """What training began with is kept (`optim.base_decay`)."""

    @property
    def num_tokens(self) -> int:
        """Return the tokens of a micro-batch on one rank."""
        return self.micro_batch_size * self.seq_len // self.sequence_parallel

    @property
    def accumulates(self) -> bool:
        """Tell whether gradients of several micro-steps are added up, in fp32."""
        return self.num_micro_steps > 1

    @property
    def is_partitioned(self) -> bool:
        """Tell whether gradients go to their owners by our own code and not by DeepSpeed's."""
        is_plain = not (self.offload_optimizer or self.has_extra) and self.expert_parallel == 1
        return self.stage == 2 and is_plain

    @property
    def is_refused(self) -> bool:
        """Tell whether training refuses this: bf16 at stage 0 with accumulation, or where experts cannot be spread."""
        adds_in_bf16 = self.stage == 0 and self.accumulates and self.element_bytes == 2
        offloads = self.offload_optimizer or self.offload_param
        return adds_in_bf16 or (self.expert_parallel > 1 and (self.stage == 0 or offloads))


@dataclass(frozen=True, slots=True)
class Weights:
    """What is trained and what is frozen, in parameters; full fine-tuning freezes nothing."""

    num_trainable: int
    frozen_bytes: float = 0.0
    num_frozen: int = 0
    adapter_width: int = 0
    """Elements a token adds in one layer: r for each adapted linear layer."""
    dequantized_bytes: float = 0.0
    """The largest linear layer in bf16, when the base is kept in 4 bits."""
    num_packed: int = 0
    """Those of the frozen parameters that are kept in 4 bits."""
    trains_experts: bool = True
    """Experts of a mixture train, or adapters on them."""
    num_merged: int = 0
    """Parameters of experts of one layer that peft adds their adapter into, a tensor of their size that backward needs:
    26.0 GiB where 17.7 were forecast without (Qwen3-30B-A3B of 6 layers, H200)."""
    num_experts: int = 0
    """Those of the trained parameters that are experts, which `zero.expert_parallel` spreads over ranks."""

    @property
    def is_full(self) -> bool:
        """Tell whether every parameter trains."""
        return self.num_frozen == 0

    @property
    def constant_bytes(self) -> float:
        """Return those of the frozen bytes that every rank holds under ZeRO-3 as well."""
        return self.num_packed * NF4_CONSTANT_BYTES


@dataclass(frozen=True, slots=True)
class Parts:
    """Bytes of one rank at one moment."""

    parameters: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    """fp32 master weights and both Adam moments, and the fp32 gradients of an optimizer step."""
    buffers: float = 0.0
    """Gathered parameters of ZeRO-3, all-gathers under way and reduce buckets."""
    activations: float = 0.0
    head: float = 0.0
    """A chunk of logits, and gradients of the head's input and weight."""

    @property
    def total(self) -> float:
        """Return the sum."""
        states = self.parameters + self.gradients + self.optimizer
        return states + self.buffers + self.activations + self.head


@dataclass(frozen=True, slots=True)
class Peak:
    """The largest moment of a step and what it is called."""

    moment: str
    parts: Parts

    @property
    def gib(self) -> float:
        """Return the peak of torch's allocator in GiB, without context and fragmentation."""
        return self.parts.total / GIB


def full_weights(shape: DecoderShape) -> Weights:
    """Return the weights of full fine-tuning."""
    return Weights(shape.num_params, num_experts=shape.experts)


FLASH, SDPA, EAGER = "flash attention", "SDPA", "eager attention"


def attention_of(shape: DecoderShape, run: RunShape) -> str:
    """Return the attention that a run of this model takes."""
    if run.is_flash and (shape.has_flash or run.names_flash):
        return FLASH
    return SDPA if shape.has_sdpa and not run.is_eager else EAGER


def forecast(shape: DecoderShape, run: RunShape, weights: Weights) -> Peak:
    """Return the largest moment of an optimizer step."""
    states = states_of(run, weights)
    layers = _Layers.of(shape, run, weights)
    head = _head(shape, run, weights)
    bucket, gathered = buckets(shape, run, weights), _gathered(shape, run, weights)
    held = {"parameters": states.parameters, "optimizer": states.optimizer}
    # Stage 3 keeps its bucket for good; below it exists during backward.
    early = gathered + (bucket if run.stage == 3 else 0)
    moments = {
        "loss head": Parts(
            **held,
            gradients=states.kept,
            buffers=early,
            activations=layers.saved,
            head=head.in_forward,
        ),
        "backward of the head": Parts(
            **held,
            gradients=states.kept,
            buffers=gathered + bucket,
            activations=layers.saved,
            head=head.in_backward,
        ),
        "backward of a layer": Parts(
            **held,
            gradients=states.kept,
            buffers=gathered + bucket,
            activations=layers.saved + layers.recomputed + layers.working,
            head=head.after,
        ),
        "end of backward": Parts(
            **held,
            gradients=states.at_end,
            buffers=gathered + bucket,
            activations=layers.working + layers.one,
        ),
        "optimizer": Parts(
            parameters=states.parameters,
            gradients=states.at_step,
            optimizer=states.optimizer + states.step,
            buffers=bucket if run.stage == 3 else 0,
        ),
    }
    if weights.num_packed:  # made sharded when all is read
        whole = weights.num_trainable * run.element_bytes + weights.frozen_bytes
        moments["loading"] = Parts(parameters=whole)
    name = max(moments, key=lambda moment: moments[moment].total)
    return Peak(name, moments[name])


def _gathered(shape: DecoderShape, run: RunShape, weights: Weights) -> float:
    """Return the layer that is unpacked from 4 bits, and ZeRO-3's whole parameters.

    Those are as many as may live, and the flat result of one prefetch.

    Every submodule prefetches another bucket, so that the limit is reached. A single rank uses its
    partitions in place (DeepSpeed's NoGatherHandle).
    """
    unpacked = weights.dequantized_bytes
    if run.stage < 3 or (run.world_size == 1 and not run.offload_param):
        return unpacked
    # Packed weights are gathered as elements of the other parameters' dtype.
    num_packed_away = round(weights.num_packed * (1 - NF4_PACKED_BYTES / run.element_bytes))
    experts = shape.experts // run.expert_parallel  # those that this rank computes with
    everything = weights.num_trainable + weights.num_frozen - num_packed_away - (shape.experts - experts)
    # Embeddings, or the experts of a layer, which are one module.
    largest = max(shape.vocab_size * shape.hidden_size, experts // shape.num_layers)
    live = min(max(run.max_live_parameters, largest), everything)
    return unpacked + (live + min(run.prefetch_bucket_size, everything)) * run.element_bytes


@dataclass(frozen=True, slots=True)
class _Layers:
    """Bytes of decoder layers' activations."""

    saved: float
    """Kept from forward to backward."""
    recomputed: float
    """One layer made anew in backward."""
    working: float
    """Gradients of activations inside one layer."""
    one: float
    """One layer's whole activations."""

    @classmethod
    def of(cls, shape: DecoderShape, run: RunShape, weights: Weights) -> _Layers:
        asked = run.checkpoint_layers
        count = shape.num_layers if asked < 0 else min(asked, shape.num_layers)
        adapter = weights.adapter_width * run.element_bytes
        attention = attention_of(shape, run)
        is_flash, pairs = attention == FLASH, run.micro_batch_size * run.seq_len**2
        kept = layer_bytes(shape, run.element_bytes, is_flash, run.is_fused, weights.trains_experts)
        per_token = kept + adapter
        one = per_token * run.num_tokens + mask_bytes(pairs, is_flash, run.element_bytes)
        inputs = checkpoint_bytes(shape, run.element_bytes) * run.num_tokens
        working = layer_backward_bytes(shape, run.element_bytes) * run.num_tokens
        merged = weights.num_merged * run.element_bytes
        one, working = one + merged, working + merged  # and its gradient
        if attention == EAGER:
            one += score_bytes(shape, pairs, run.element_bytes)
            working += score_backward_bytes(shape, pairs, run.element_bytes)
        # The input of the final norm comes after the layers.
        saved = count * inputs + (shape.num_layers - count) * one + inputs
        return cls(saved, one if count else 0.0, working, one)


_COMPARED_ROWS, _COMPARED_BYTES = 512, 20
"""Rows that a divergence is worked out of at once (model/head/nll.py), and the bytes of each logit meanwhile: five of
float32, counted in the code and not measured."""


@dataclass(frozen=True, slots=True)
class _Head:
    in_forward: float
    in_backward: float
    after: float


def _head(shape: DecoderShape, run: RunShape, weights: Weights) -> _Head:
    """Return the bytes of the loss head (trainer/model/head/head.py), whose gradients are made in forward."""
    if run.asks_log_probs:
        return _log_prob_head(shape, run, weights)
    e, hidden = run.element_bytes, shape.hidden_size
    rows = min(run.loss_chunk_tokens, run.num_tokens)
    states = 2 * run.num_tokens * hidden * e  # its input and the gradient of it
    logits = rows * shape.num_outputs * (e + (bend_bytes(shape, e) if run.asks_base else 0))
    if run.distils:  # gradients of all rows, and some rows at a time in float32
        logits += shape.num_outputs * (rows * e + min(rows, _COMPARED_ROWS) * _COMPARED_BYTES)
    matrix = shape.num_outputs * hidden if weights.is_full else 0
    summed = matrix * (e if run.num_tokens <= run.loss_chunk_tokens else 4)
    cast = matrix * e if summed > matrix * e else 0
    # Stage 3 reduces the head's gradient into its partition at once.
    return _Head(states + logits + summed, states + summed + cast, states / 2 + matrix * e)


def _log_prob_head(shape: DecoderShape, run: RunShape, weights: Weights) -> _Head:
    """Return the bytes of log-probabilities (trainer/model/head/log_probs.py), were all tokens learnt.

    A frozen matrix has the gradient of each log-probability made in forward, a copy as wide as the states, which is
    weighed in float32 in backward. For one that trains logits are made a second time, in backward, beside the sum of
    its gradient in float32, to which a chunk's own is added.
    """
    e, wide = run.element_bytes, run.num_tokens * shape.hidden_size
    logits = min(run.loss_chunk_tokens, run.num_tokens) * shape.num_outputs
    chunk = logits * log_prob_bytes(shape, e)
    if not weights.is_full:
        return _Head(
            3 * wide * e + chunk, 8 * wide, wide * e
        )  # 8: the copy, its product in float32, and that narrowed
    matrix = shape.num_outputs * shape.hidden_size
    in_backward = 2 * wide * e + 4 * matrix + max(chunk, (matrix + logits) * e)
    return _Head(2 * wide * e + chunk, in_backward, wide * e + matrix * e)
