"""Cross-entropy of supervised tokens, and beta times the KL to the base at those of replay.

The loss is a sum over supervised tokens, divided once by their count over all micro-batches and ranks. beta weighs a
replay token's KL against its own cross-entropy, so both are one part with one denominator, and one pass of the head.
Where tokens of some sources weigh more, each counts so much in the sum and in the count; what is reported by source and
as `loss` stays plain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from trainer.data.pack.collate import MicroBatch
from trainer.data.pack.refs import PackRef
from trainer.engine.policy import Policy
from trainer.metrics.mean import Mean
from trainer.mix.loader import StepBatch
from trainer.objective.contract import Part, Sums
from trainer.teacher.teacher import Teacher

TARGETS, KL, KL_COST, KL_TOKENS = "targets", "kl", "kl_cost", "kl_tokens"
TOTAL, WEIGHTS = "weighted_total", "target_weights"


class CausalLMObjective:
    """Next-token cross-entropy by source. Implements Objective."""

    def __init__(
        self,
        names: Sequence[str],
        teacher: Teacher | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        """Take the names of the sources in their order, and who says what the base thinks of replay.

        Args:
            weights: What a token of a source counts, by name, where not all count alike.
        """
        self._names = tuple(names)
        self._weights = None if weights is None else [weights[name] for name in names]
        self._teacher = teacher

    @property
    def sum_names(self) -> tuple[str, ...]:
        """Return the sum of losses of each source, and what there is of KL."""
        kl = () if self._teacher is None else (KL, KL_COST, KL_TOKENS)
        total = () if self._weights is None else (TOTAL,)
        return (*(f"nll/{name}" for name in self._names), *kl, *total)

    @property
    def means(self) -> tuple[Mean, ...]:
        """Return the mean loss, that of each source, the mean KL, and what was minimised where KL is part of it."""
        losses = tuple(f"nll/{name}" for name in self._names)
        found = [Mean("loss", losses, (TARGETS,))]
        found += [Mean(f"loss/{name}", (f"nll/{name}",), (f"{TARGETS}/{name}",)) for name in self._names]
        if self._teacher is not None:
            found.append(Mean("kl_replay", (KL,), (KL_TOKENS,)))
        if self._weights is not None:
            found.append(Mean("loss_total", (TOTAL,), (WEIGHTS,)))
        elif self._teacher is not None:
            found.append(Mean("loss_total", (*losses, KL_COST), (TARGETS,), needs=KL_TOKENS))
        return tuple(found)

    def counts(self, batch: StepBatch) -> Mapping[str, float]:
        """Return the supervised tokens of the step, in all and by source."""
        by_source = {f"{TARGETS}/{name}": count for name, count in batch.num_targets_by_source.items()}
        found = {TARGETS: batch.num_targets_global, **by_source}
        if self._weights is None:
            return found
        weighed = (
            weight * batch.num_targets_by_source[name]
            for name, weight in zip(self._names, self._weights, strict=True)
        )
        return {**found, WEIGHTS: math.fsum(weighed)}

    def attach(self, micro: MicroBatch, refs: Sequence[PackRef]) -> object | None:
        """Read what the teacher keeps of these packs."""
        return None if self._teacher is None else self._teacher.attach(micro, refs)

    def begin(self, policy: Policy, batch: StepBatch) -> None:
        """Need nothing of the whole step."""

    def warning(self, record: Mapping[str, float]) -> str | None:
        """Say nothing."""
        return None

    def terms(self, policy: Policy, micro: MicroBatch, sums: Sums) -> Sequence[Part]:
        """Take the losses of a micro-batch."""
        base = None if self._teacher is None else self._teacher.top_tokens(policy, micro)
        weights_B = None if self._weights is None else [self._weights[source] for source in micro.source_B]
        losses = policy.nll(micro, base, weights_B)
        nll_B = losses.nll_N.reshape(len(micro.source_B), -1).sum(dim=1, dtype=torch.float64)
        sums.add_rows([f"nll/{self._names[source]}" for source in micro.source_B], nll_B)
        if base is not None and losses.kl_R is not None:
            kl_sum = losses.kl_R.sum(dtype=torch.float64)
            sums.add(KL, kl_sum)
            sums.add(KL_COST, base.beta * kl_sum)
            sums.count(KL_TOKENS, len(base.host_rows_R))
        if weights_B is None:
            return [Part(losses.loss_sum, TARGETS)]
        sums.add(TOTAL, losses.loss_sum.detach())
        return [Part(losses.loss_sum, WEIGHTS)]
