"""LoRA in numbers: a pure function of shapes, rank and targets.

A linear layer [out, in] with weights W gets B A beside it, A [r, in] and B [out, r]: r x (in + out) parameters.

Source: LoRA, arXiv:2106.09685; QLoRA, arXiv:2305.14314.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from trainer.config.tune import MOST_GATED_RANK
from trainer.forecast.memory import NF4_CONSTANT_BYTES, NF4_PACKED_BYTES, RunShape, Weights, forecast
from trainer.forecast.shapes import DecoderShape, Linear

RANKS = (4, 8, 16, 32, 64, 128, 256)
NF4_BYTES = NF4_PACKED_BYTES + NF4_CONSTANT_BYTES


@dataclass(frozen=True, slots=True)
class AdapterSize:
    """One rank of LoRA beside the chosen linear layers of a model."""

    r: int
    num_params: int
    num_base_params: int
    peak_gib: float
    """ZeRO-1, which for so few trained parameters is the same as ZeRO-0 but for its buffers."""
    peak_stage3_gib: float
    peak_nf4_gib: float
    """ZeRO-1 with the linear layers of the base in NF4."""
    element_bytes: int = 2
    """Bytes of a weight: 2 in bf16, 4 in fp32."""

    @property
    def share(self) -> float:
        """Return trainable over all parameters, adapters in."""
        return self.num_params / (self.num_base_params + self.num_params)

    @property
    def adapter_bytes(self) -> int:
        """Return the size of the adapter's tensors on disk, in the dtype of training."""
        return self.num_params * self.element_bytes

    @property
    def checkpoint_bytes(self) -> int:
        """Return the size of a checkpoint that training resumes from, without the frozen base."""
        return self.num_params * checkpoint_bytes(self.element_bytes)


def checkpoint_bytes(element_bytes: int) -> int:
    """Return the bytes of a trained parameter in a checkpoint: weight, fp32 master weight, two fp32 Adam moments."""
    return element_bytes + 4 + 4 + 4


MOST_SMALL = 0.01
"""Share of the weights of linear layers that may be in layers smaller than the rank: gates, not projections."""


def has_few_small(sides: Iterable[tuple[int, int, int]], r: int) -> bool:
    """Tell whether layers smaller than the rank, given as (in, out, count), are few enough weights to go without."""
    small = total = 0
    for num_in, num_out, count in sides:
        total += num_in * num_out * count
        small += num_in * num_out * count if min(num_in, num_out) < r else 0
    return small <= MOST_SMALL * total


def chosen(shape: DecoderShape, targets: Collection[str] | None = None, r: int = 1) -> list[Linear]:
    """Return the linear layers whose last name is among the targets; None takes all but gates smaller than the rank."""
    if targets is None:
        if has_few_small(((one.num_in, one.num_out, one.count) for one in shape.linears), r):
            return [linear for linear in shape.linears if min(linear.num_in, linear.num_out) >= r]
        return list(shape.linears)
    return [linear for linear in shape.linears if linear.name.rsplit(".", 1)[-1] in targets]


def num_adapter_params(shape: DecoderShape, r: int, targets: Collection[str] | None = None) -> int:
    """Return the parameters of LoRA with rank r."""
    return sum(r * (linear.num_in + linear.num_out) * linear.count for linear in chosen(shape, targets, r))


def adapter_weights(
    shape: DecoderShape,
    r: int,
    targets: Collection[str] | None = None,
    base_in_nf4: bool = False,
    element_bytes: int = 2,
    is_one_function: bool = True,
) -> Weights:
    """Return what trains and what is frozen. The base is in the dtype of training, or its linear layers in NF4.

    Args:
        is_one_function: Gated MLPs are, with their adapters, where their code and the rank let them.
    """
    num_targets = sum(linear.count for linear in chosen(shape, targets, r))
    weights = Weights(
        num_trainable=num_adapter_params(shape, r, targets),
        frozen_bytes=shape.num_params * element_bytes,
        num_frozen=shape.num_params,
        adapter_width=r * num_targets // shape.num_layers,
        gated_width=gated_width(shape, r, targets) if is_one_function else 0.0,
        trains_experts=False,
    )
    return in_nf4(shape, weights, element_bytes) if base_in_nf4 else weights


def gated_width(shape: DecoderShape, r: int, targets: Collection[str] | None = None) -> float:
    """Return the width of the gated MLPs that are one function with their adapters, mean over layers."""
    if not shape.has_silu_gates or r > MOST_GATED_RANK:
        return 0.0
    counts = Counter[tuple[str, int, int]]()
    for one in chosen(shape, targets, r):
        counts[one.name.rsplit(".", 1)[-1], one.num_in, one.num_out] += one.count
    found = 0
    for (name, hidden, ffn), count in list(counts.items()):
        if name == "gate_proj":
            found += min(count, counts["up_proj", hidden, ffn], counts["down_proj", ffn, hidden]) * ffn
    return found / shape.num_layers


def in_nf4(shape: DecoderShape, weights: Weights, element_bytes: int = 2) -> Weights:
    """Return the same with the frozen linear layers in NF4."""
    linears = sum(linear.num_weights for linear in shape.linears)
    largest = max((linear.num_in * linear.num_out for linear in shape.linears), default=0)
    return replace(
        weights,
        frozen_bytes=weights.frozen_bytes + linears * (NF4_BYTES - element_bytes),
        dequantized_bytes=float(largest * element_bytes),
        num_packed=linears,
    )


def whole_stage(run: RunShape) -> int:
    """Return the stage at which the tables over r count a base that every rank has whole."""
    return min(run.stage, 1)


def adapter(
    shape: DecoderShape,
    run: RunShape,
    r: int,
    targets: Collection[str] | None = None,
    is_one_function: bool = True,
) -> AdapterSize:
    """Return parameters, bytes and memory of one rank of LoRA for a run; without sharding as at `whole_stage`."""
    size = run.element_bytes
    weights = adapter_weights(shape, r, targets, False, size, is_one_function)
    packed = adapter_weights(shape, r, targets, True, size, is_one_function)
    replicated = replace(run, stage=whole_stage(run))
    return AdapterSize(
        r=r,
        num_params=weights.num_trainable,
        num_base_params=shape.num_params,
        peak_gib=forecast(shape, replicated, weights).gib,
        peak_stage3_gib=forecast(shape, replace(run, stage=3), weights).gib,
        peak_nf4_gib=forecast(shape, replicated, packed).gib,
        element_bytes=size,
    )


def adapters(
    shape: DecoderShape,
    run: RunShape,
    targets: Collection[str] | None = None,
    is_one_function: bool = True,
) -> list[AdapterSize]:
    """Return LoRA over the usual ranks."""
    return [adapter(shape, run, r, targets, is_one_function) for r in RANKS]
