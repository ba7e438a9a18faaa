"""The maths of one optimizer step: micro-batches -> token-weighted loss -> one update.

Knows nothing of time, files or logs.

Shapes: B packs, T sequence, N = B*T.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.data.pack.collate import MicroBatch
from trainer.dist.group import Group
from trainer.engine.engine import Engine
from trainer.engine.inputs import labels_of, model_inputs, move
from trainer.mix.loader import StepBatch
from trainer.teacher.base_model import BaseModel


@dataclass(slots=True)
class StepResult:
    """What one optimizer step did. Sums are over all ranks and micro-steps."""

    loss_sums: dict[str, float]
    num_targets: dict[str, int]
    sum_len_sq: float
    grad_norm: float
    is_applied: bool
    stop_votes: int
    kl_sum: float = 0.0
    """KL to the base in nats, over the supervised replay tokens."""
    num_kl_tokens: int = 0
    kl_cost: float = 0.0
    """What the KL adds to the sum of losses: beta times its sum."""

    @property
    def loss(self) -> float:
        """Return the mean cross-entropy over supervised tokens, in nats."""
        return sum(self.loss_sums.values()) / max(sum(self.num_targets.values()), 1)

    @property
    def total_loss(self) -> float:
        """Return what was minimised: cross-entropy and weighted KL over supervised tokens, in nats."""
        return (sum(self.loss_sums.values()) + self.kl_cost) / max(sum(self.num_targets.values()), 1)

    @property
    def is_sound(self) -> bool:
        """Tell whether the update was applied with finite loss and gradients."""
        return self.is_applied and math.isfinite(self.total_loss) and math.isfinite(self.grad_norm)


def train_step(
    engine: Engine,
    batch: StepBatch,
    names: Sequence[str],
    group: Group,
    flash: bool,
    stop: bool,
    base_model: BaseModel | None = None,
) -> StepResult:
    """Run all micro-batches of a step and update once. Collective: every rank.

    The loss is summed over supervised tokens and divided once by their count over all micro-batches and
    ranks; the count comes from the plan, so it needs no communication. Times the world size, because
    DeepSpeed averages gradients over ranks.

    Args:
        base_model: Adds beta times the KL to it at every supervised replay token to that sum, before the
            division: beta weighs a replay token's KL against its own cross-entropy.
    """
    scale = group.world_size / max(batch.num_targets_global, 1)
    sums_S = torch.zeros(len(names), dtype=torch.float64, device=group.device)
    kl_sums_2 = torch.zeros(2, dtype=torch.float64, device=group.device)
    sum_len_sq = num_kl_tokens = 0
    for index, micro in enumerate(batch.micro_batches):
        base = None if base_model is None else base_model.top_tokens(engine, micro, group, flash)
        asked = {} if base is None else {"base": base}
        loss_sum, nll_N, *kl = engine.forward(
            labels=labels_of(micro, group.device), **asked, **model_inputs(micro, group.device, flash)
        )
        engine.backward(loss_sum * scale, is_last=index == len(batch.micro_batches) - 1)
        add_by_source(sums_S, nll_N, micro)
        if base is not None:
            kl_sum = kl[0].sum(dtype=torch.float64)
            kl_sums_2 += torch.stack([kl_sum, base.beta * kl_sum])
            num_kl_tokens += len(base.host_rows_R)
        sum_len_sq += micro.sum_len_sq
    grad_norm, is_applied = engine.step()
    counts = [float(num_kl_tokens), float(sum_len_sq), float(stop)]
    *sums, kl_sum, kl_cost, num_kl, total_sq, votes = group.sum(
        torch.cat([sums_S, kl_sums_2]).tolist() + counts
    )
    return StepResult(
        loss_sums=dict(zip(names, sums, strict=True)),
        num_targets=batch.num_targets_by_source,
        sum_len_sq=total_sq,
        grad_norm=grad_norm,
        is_applied=is_applied,
        stop_votes=round(votes),
        kl_sum=kl_sum,
        num_kl_tokens=round(num_kl),
        kl_cost=kl_cost,
    )


def add_by_source(sums_S: Tensor, nll_N: Tensor, micro: MicroBatch) -> None:
    """Add each pack's loss to its source's sum, on the device."""
    per_pack_B = nll_N.reshape(len(micro.source_B), -1).sum(dim=1, dtype=torch.float64)
    index_B = move(torch.tensor(micro.source_B), sums_S.device)
    sums_S.index_add_(0, index_B, per_pack_B)
