"""The maths of one optimizer step: micro-batches -> token-weighted loss -> one update.

Knows nothing of time, files or logs.

Shapes: B packs, T sequence, N = B*T.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.data.collate import MicroBatch
from trainer.data.loader import StepBatch
from trainer.dist.group import Group
from trainer.engine.build import Engine
from trainer.objective.causal_lm import block_mask


@dataclass(slots=True)
class StepResult:
    """What one optimizer step did. Sums are over all ranks and micro-steps."""

    loss_sums: dict[str, float]
    num_targets: dict[str, int]
    sum_len_sq: float
    grad_norm: float
    is_applied: bool
    stop_votes: int

    @property
    def loss(self) -> float:
        """Return the mean loss over supervised tokens, in nats."""
        return sum(self.loss_sums.values()) / max(sum(self.num_targets.values()), 1)

    @property
    def is_sound(self) -> bool:
        """Tell whether the update was applied with finite loss and gradients."""
        return self.is_applied and math.isfinite(self.loss) and math.isfinite(self.grad_norm)


def train_step(
    engine: Engine, batch: StepBatch, names: Sequence[str], group: Group, flash: bool, stop: bool
) -> StepResult:
    """Run all micro-batches of a step and update once. Collective: every rank.

    The loss is summed over supervised tokens and divided once by their count over all micro-batches and
    ranks; the count comes from the plan, so it needs no communication. Times the world size, because
    DeepSpeed averages gradients over ranks.
    """
    scale = group.world_size / max(batch.num_targets_global, 1)
    sums_S = torch.zeros(len(names), dtype=torch.float64, device=group.device)
    sum_len_sq = 0
    for index, micro in enumerate(batch.micro_batches):
        loss_sum, nll_N = engine.forward(
            labels=labels_of(micro, group.device), **model_inputs(micro, group.device, flash)
        )
        engine.backward(loss_sum * scale, is_last=index == len(batch.micro_batches) - 1)
        add_by_source(sums_S, nll_N, micro)
        sum_len_sq += micro.sum_len_sq
    grad_norm, is_applied = engine.step()
    *sums, total_sq, votes = group.sum([*sums_S.tolist(), float(sum_len_sq), float(stop)])
    return StepResult(
        loss_sums=dict(zip(names, sums, strict=True)),
        num_targets=batch.num_targets_by_source,
        sum_len_sq=total_sq,
        grad_norm=grad_norm,
        is_applied=is_applied,
        stop_votes=round(votes),
    )


def add_by_source(sums_S: Tensor, nll_N: Tensor, micro: MicroBatch) -> None:
    """Add each pack's loss to its source's sum, on the device."""
    per_pack_B = nll_N.reshape(len(micro.source_B), -1).sum(dim=1, dtype=torch.float64)
    index_B = _move(torch.tensor(micro.source_B), sums_S.device)
    sums_S.index_add_(0, index_B, per_pack_B)


def model_inputs(batch: MicroBatch, device: torch.device, flash: bool) -> dict[str, Any]:
    """Move a micro-batch to the device in the layout the attention implementation wants.

    Flash attention gets one row of all packs with explicit int32 `cu_seq_lens` and a Python-int
    maximum, so that transformers need not look for boundaries with a device synchronisation in
    every layer. SDPA gets a block-diagonal causal mask.
    """
    tokens = torch.from_numpy(batch.tokens_BT)
    positions = torch.from_numpy(batch.positions_BT)
    if flash:
        tokens, positions = tokens.reshape(1, -1), positions.reshape(1, -1)
    inputs: dict[str, Any] = {
        "input_ids": _move(tokens, device),
        "position_ids": _move(positions, device),
    }
    if flash:
        boundaries = _move(torch.from_numpy(batch.cu_seq_lens), device)
        inputs |= {
            "cu_seq_lens_q": boundaries,
            "cu_seq_lens_k": boundaries,
            "max_length_q": batch.max_seq_len,
            "max_length_k": batch.max_seq_len,
        }
    else:
        inputs["attention_mask"] = block_mask(_move(torch.from_numpy(batch.segments_BT), device))
    return inputs


def labels_of(batch: MicroBatch, device: torch.device) -> Tensor:
    """Move the labels to the device."""
    return _move(torch.from_numpy(batch.labels_BT), device)


def _move(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy to the device without waiting for it: from pageable memory the host would wait for the stream."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor
