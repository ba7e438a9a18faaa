"""The maths of one optimizer step: micro-batches -> parts divided by the counts of the step -> one update.

Knows nothing of time, files or logs, and no objective.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from trainer.dist.progress import PROGRESS
from trainer.engine.policy import Policy
from trainer.metrics.mean import Mean
from trainer.mix.loader import StepBatch
from trainer.objective.contract import Objective, Part, Sums
from trainer.run.pace import Pace


@dataclass(slots=True)
class StepResult:
    """What one optimizer step did."""

    sums: dict[str, float]
    """Sums and counts by name, over all ranks and micro-steps."""
    means: tuple[Mean, ...]
    """What is reported of the sums; the first is the loss."""
    num_targets: int
    """Supervised tokens over all ranks."""
    sum_len_sq: float
    """Squared lengths of documents over all ranks, for the FLOPs of attention."""
    grad_norm: float
    is_applied: bool
    stop_votes: int
    """Ranks that were asked to stop."""
    urgency: int = 0
    """How often the time has passed after which a save is due."""
    written_votes: int = 0
    """Ranks that have written what a save began."""
    num_tokens: int = 0
    """Positions computed over all ranks, padding among them."""
    num_padding: int = 0
    """Those of them that hold no token of a document."""
    is_refused: bool = False
    """Its numbers were finite, and beyond the bounds; weights and optimizer are as before."""

    @property
    def loss(self) -> float:
        """Return the first mean; 0 where nothing was supervised."""
        return self.means[0].of(self.sums) or 0.0

    @property
    def unsound(self) -> list[str]:
        """Return the means that are not finite."""
        found = {mean.name: mean.of(self.sums) for mean in self.means}
        return [name for name, value in found.items() if value is not None and not math.isfinite(value)]

    @property
    def is_sound(self) -> bool:
        """Tell whether the update was applied with finite means and gradients."""
        return self.is_applied and math.isfinite(self.grad_norm) and not self.unsound


@dataclass(frozen=True, slots=True)
class Care:
    """What a step is watched by, tells beside its numbers, and is told."""

    at: Callable[[int], None] = lambda index: None
    """Told before each micro-batch which one it is."""
    is_written: Callable[[], bool] = lambda: False
    """Asked at the end whether this rank has written what a save began."""
    urgency: Callable[[], int] = lambda: 0
    """Asked at the end how often the time has passed after which a save is due; one rank says it."""
    pace: Pace | None = None
    """None: nobody times it."""
    most_loss: float = math.inf
    """A step with a larger loss is not applied."""
    most_norm: float = math.inf
    """Nor one with a larger gradient norm."""


CARELESS = Care()


def train_step(
    policy: Policy,
    objective: Objective,
    batch: StepBatch,
    stop: Callable[[], bool],
    care: Care = CARELESS,
) -> StepResult:
    """Run all micro-batches of a step and update once. Collective: every rank.

    `stop` is asked at the end of the step, so that a signal in the middle of it is not heard a step later.

    Every part is a sum, divided once by a count over all micro-batches and ranks; the count comes from the plan, so it
    needs no communication. Times the ranks, because DeepSpeed averages gradients over them; those that share a pack
    have parts of its sum.
    Biases of routers that move do so after the update of a sound step, by the tokens of experts over all of it.
    """
    counts = objective.counts(batch)
    running = Sums(objective.sum_names, policy.device)
    objective.begin(policy, batch)
    sum_len_sq = 0
    is_refused = False
    for index, micro in enumerate(batch.micro_batches):
        care.at(index)
        is_last = index == len(batch.micro_batches) - 1
        with contextlib.nullcontext() if care.pace is None else care.pace.computing():
            parts = objective.terms(policy, micro, running)
        PROGRESS.mark()
        loss = loss_of(parts, counts, policy, len(batch.micro_batches))
        if is_last and (is_refused := _is_beyond(care.most_loss, objective, running, counts, policy)):
            loss = loss * math.nan  # and all gradients: as after an overflow, nothing is applied
        policy.engine.backward(loss, is_last)
        PROGRESS.mark()
        sum_len_sq += micro.sum_len_sq * policy.mesh.sequence.is_first
    found = running.to_list()  # waits for the backward pass, so that nothing after the update waits for it
    PROGRESS.mark()
    grad_norm, is_applied = policy.engine.step(care.most_norm)
    PROGRESS.mark()
    loads = [] if policy.choice_bias is None or policy.expert_load is None else policy.expert_load.take_step()
    told = [float(sum_len_sq), float(stop()), float(care.is_written()), float(care.urgency())]
    totals = iter(policy.mesh.sum([*told, *found, *loads]))
    total_sq, votes, written, due = itertools.islice(totals, len(told))
    sums, loads = list(itertools.islice(totals, len(found))), list(totals)
    result = StepResult(
        sums={**dict(zip(objective.sum_names, sums, strict=True)), **counts},
        means=objective.means,
        num_targets=batch.num_targets_global,
        sum_len_sq=total_sq,
        grad_norm=grad_norm,
        is_applied=is_applied,
        stop_votes=round(votes),
        urgency=round(due),
        written_votes=round(written),
        num_tokens=batch.num_tokens_global,
        num_padding=batch.num_tokens_global - sum(batch.num_tokens_by_source.values()),
        is_refused=is_refused or (not is_applied and math.isfinite(grad_norm)),
    )
    if policy.choice_bias is not None and result.is_sound:
        policy.choice_bias.adjust(loads)
    return result


def pass_over(
    policy: Policy, objective: Objective, batch: StepBatch, stop: Callable[[], bool], care: Care
) -> StepResult:
    """Return what a step did whose data is passed over: nothing. Collective: every rank."""
    votes, written, due = policy.mesh.sum([float(stop()), float(care.is_written()), float(care.urgency())])
    return StepResult(
        sums=dict.fromkeys([*objective.sum_names, *objective.counts(batch)], 0.0),
        means=objective.means,
        num_targets=0,
        sum_len_sq=0.0,
        grad_norm=math.nan,
        is_applied=False,
        stop_votes=round(votes),
        urgency=round(due),
        written_votes=round(written),
        is_refused=True,
    )


def loss_of(parts: Sequence[Part], counts: Mapping[str, float], policy: Policy, num_micro: int) -> Tensor:
    """Return what a micro-batch adds to the loss of the step."""
    loss = functools.reduce(operator.add, (_divided(part, counts, policy.mesh.num_ranks) for part in parts))
    balance = None if policy.balance is None else policy.balance.take()
    if balance is not None:  # a mean by itself: over the step it is the mean over micro-batches and ranks
        loss = loss + balance / num_micro
    return loss


def _is_beyond(
    most: float, objective: Objective, running: Sums, counts: Mapping[str, float], policy: Policy
) -> bool:
    """Tell whether the loss of the step is larger than is allowed. Collective, if there is a bound."""
    if not math.isfinite(most):
        return False
    sums = dict(zip(objective.sum_names, policy.mesh.sum(running.to_list()), strict=True))
    return (objective.means[0].of({**sums, **counts}) or 0.0) > most


def _divided(part: Part, counts: Mapping[str, float], num_averaged: int) -> Tensor:
    count = counts[part.per]
    return part.loss_sum * (num_averaged / (count if count > 0 else 1))
