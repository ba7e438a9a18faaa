"""The divergence from a teacher at the tokens of some sources, with cross-entropy beside it.

Three sums, each divided by its own count of the whole step, which is known from the plan:

    weight T^2 sum D / n  +  cross_entropy sum nll / n  +  sum nll of other sources / m

with n supervised tokens that are distilled, m that are not, and T the temperature: a gradient at T is smaller by about
T^2 (arXiv:1503.02531, section 2). The head makes gradients in its forward pass and scales them by one number, so
what is not distilled weighs n / m there and all of it is divided by n.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch

from trainer.config.distill import DistillConfig
from trainer.data.pack.collate import MicroBatch
from trainer.data.pack.refs import PackRef
from trainer.engine.policy import Policy
from trainer.metrics.mean import Mean
from trainer.mix.loader import StepBatch
from trainer.objective.contract import Part, Sums
from trainer.teacher.teacher import Teacher

DIVERGENCE, CROSS_ENTROPY = "divergence", "cross_entropy"
DISTILLED, OTHERS, TARGETS = "distilled", "others", "targets"


class DistillObjective:
    """Learns some sources from a teacher, and the others by their tokens. Implements Objective."""

    def __init__(
        self, names: Sequence[str], distilled: Collection[int], options: DistillConfig, teacher: Teacher
    ) -> None:
        """Take the names of the sources in their order, and the numbers of those that the teacher knows."""
        self._names, self._distilled = tuple(names), frozenset(distilled)
        self._options, self._teacher = options, teacher
        self._counts: Mapping[str, float] = {}

    @property
    def sum_names(self) -> tuple[str, ...]:
        """Return the sum of cross-entropies of each source, and that of divergences."""
        return (*(f"nll/{name}" for name in self._names), DIVERGENCE)

    @property
    def means(self) -> tuple[Mean, ...]:
        """Return what is minimised, the divergence in nats at the temperature, and the cross-entropy by source."""
        options = self._options
        divergence = Mean(DIVERGENCE, (DIVERGENCE,), (DISTILLED,))
        of_distilled = Mean(CROSS_ENTROPY, self._sums(is_distilled=True), (DISTILLED,))
        of_others = Mean("text", self._sums(is_distilled=False), (OTHERS,))
        parts = [(options.weight * options.temperature**2, divergence), (1.0, of_others)]
        if options.cross_entropy:
            parts.append((options.cross_entropy, of_distilled))
        by_source = (Mean(f"loss/{name}", (f"nll/{name}",), (f"{TARGETS}/{name}",)) for name in self._names)
        return (Mean("loss", (), (), plus=tuple(parts)), divergence, of_distilled, *by_source)

    def _sums(self, is_distilled: bool) -> tuple[str, ...]:
        return tuple(
            f"nll/{name}"
            for number, name in enumerate(self._names)
            if (number in self._distilled) is is_distilled
        )

    def counts(self, batch: StepBatch) -> Mapping[str, float]:
        """Return the supervised tokens of the step: those distilled, the others, and by source."""
        by_source = batch.num_targets_by_source
        num = sum(by_source[name] for number, name in enumerate(self._names) if number in self._distilled)
        found = {f"{TARGETS}/{name}": float(count) for name, count in by_source.items()}
        return found | {DISTILLED: float(num), OTHERS: float(sum(by_source.values()) - num)}

    def attach(self, micro: MicroBatch, refs: Sequence[PackRef]) -> object | None:
        """Read what the teacher keeps of these packs."""
        return self._teacher.attach(micro, refs)

    def begin(self, policy: Policy, batch: StepBatch) -> None:
        """Take the counts of the step, which weigh its parts against each other."""
        self._counts = self.counts(batch)

    def warning(self, record: Mapping[str, float]) -> str | None:
        """Say nothing."""
        return None

    def terms(self, policy: Policy, micro: MicroBatch, sums: Sums) -> Sequence[Part]:
        """Take the divergences and cross-entropies of a micro-batch."""
        teacher = self._teacher.top_tokens(policy, micro)
        num_distilled, num_others = self._counts[DISTILLED], self._counts[OTHERS]
        weights_B: list[float] | None = None
        if num_distilled and num_others:
            ratio = num_distilled / num_others
            weights_B = [1.0 if source in self._distilled else ratio for source in micro.source_B]
        losses = policy.nll(micro, teacher, weights_B)
        nll_B = losses.nll_N.reshape(len(micro.source_B), -1).sum(dim=1, dtype=torch.float64)
        sums.add_rows([f"nll/{self._names[source]}" for source in micro.source_B], nll_B)
        if losses.kl_R is not None:
            sums.add(DIVERGENCE, losses.kl_R.sum(dtype=torch.float64))
        return [Part(losses.loss_sum, DISTILLED if num_distilled else OTHERS)]
