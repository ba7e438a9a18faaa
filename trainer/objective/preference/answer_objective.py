"""Losses of answers with a label, desirable or not, and the cross-entropy of sources without preferences beside them.

The point that KTO measures from is one number of the step: the answers of all its packs, on all ranks, are put behind
the prompts of others, and the model and its reference are asked about those before the first micro-batch. So it does
not depend on how answers fall into micro-batches and ranks.

Shapes: G segments, A answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainer.config.data import TokenValue
from trainer.config.preference import PreferenceConfig, PreferenceLoss
from trainer.data.pack.collate import MicroBatch
from trainer.data.pack.refs import PackRef
from trainer.data.types import Bools, Float64s, Unit
from trainer.engine.model_inputs import move
from trainer.engine.policy import Policy
from trainer.metrics.mean import Mean
from trainer.mix.loader import StepBatch
from trainer.model.head.log_probs import LogProbs
from trainer.objective.contract import Part, Sums
from trainer.objective.preference.answer_losses import answer_losses, reference_point
from trainer.objective.preference.other_sources import OtherSources
from trainer.objective.preference.read_reference import ReadReference
from trainer.objective.preference.sums import asked_of, place_by_segment, sums_of

ANSWERS, PER_ANSWER = "answers", "per_answer"
"""What divides the loss: the answers of the step, but 1 where it has none."""
LOSS, POINT = "answer_loss", "point"
SIDES = ("desirable", "undesirable")


@dataclass(frozen=True, slots=True)
class Mismatched:
    """The packs of a micro-batch with answers behind the prompts of others."""

    micro: MicroBatch
    reference: Float64s
    """Sums of log-probabilities of all pieces of the packs, in their order."""
    is_strange: Bools
    """Which of those pieces have an answer that was given to another prompt."""


ReadMismatched = Callable[[Sequence[PackRef]], Mismatched]


@dataclass(frozen=True, slots=True)
class AttachedAnswers:
    """What comes with a micro-batch."""

    reference_G: Float64s
    mismatched: MicroBatch | None
    mismatched_reference_G: Float64s
    is_strange_G: Bools


class AnswerObjective:
    """A loss of answers with labels. Implements Objective."""

    def __init__(
        self,
        names: Sequence[str],
        units: Sequence[Unit],
        options: PreferenceConfig,
        reference: ReadReference,
        mismatched: ReadMismatched | None = None,
    ) -> None:
        """Take the sources' names and what each keeps whole, in their order, and who knows the reference's sums.

        Args:
            mismatched: Reads packs with answers behind the prompts of others; KTO needs it.
        """
        assert not options.is_paired, "pairs have an objective of their own"
        assert (options.loss is PreferenceLoss.kto) <= (mismatched is not None), "KTO measures from a point"
        self._options = options
        self._reference = reference
        self._mismatched = mismatched if options.loss is PreferenceLoss.kto else None
        self._answered = [name for name, unit in zip(names, units, strict=True) if unit is Unit.answer]
        self._sources = [number for number, unit in enumerate(units) if unit is Unit.answer]
        others = [name for name in names if name not in self._answered]
        self._others = OtherSources(names, others, options.text_weight)
        self._point = torch.zeros((), dtype=torch.float64)

    @property
    def sum_names(self) -> tuple[str, ...]:
        """Return the sums over answers of each label, and the sum of losses of each source without labels."""
        sides = [f"{name}_{side}" for name in ("reward", "log_prob", "length", "num") for side in SIDES]
        return (LOSS, POINT, *sides, *self._others.sum_names)

    @property
    def means(self) -> tuple[Mean, ...]:
        """Return what is minimised and its parts, the point, and rewards and log-probabilities by label.

        `loss` is `answer_loss`, and the loss of other sources with its weight.
        """
        found = [Mean("loss", (LOSS,), (ANSWERS,), plus=self._others.added), Mean(LOSS, (LOSS,), (ANSWERS,))]
        if self._mismatched is not None:
            found.append(Mean("reference_point", (POINT,), (ANSWERS,)))
        for side in SIDES:
            found += [
                Mean(f"{name}_{side}", (f"{name}_{side}",), (f"num_{side}",))
                for name in ("reward", "log_prob", "length")
            ]
            found.append(Mean(f"log_prob_{side}_token", (f"log_prob_{side}",), (f"length_{side}",)))
        return (*found, *self._others.means)

    def counts(self, batch: StepBatch) -> Mapping[str, float]:
        """Return the answers of the step, and other targets."""
        num_answers = sum(batch.num_units_by_source[name] for name in self._answered)
        return {**self._others.counts(batch), ANSWERS: num_answers, PER_ANSWER: max(num_answers, 1)}

    def attach(self, micro: MicroBatch, refs: Sequence[PackRef]) -> object | None:
        """Read the reference's sums, and the packs with answers behind the prompts of others."""
        reference_G = place_by_segment(micro, self._reference(refs))
        if self._mismatched is None:
            return AttachedAnswers(reference_G, None, np.empty(0), np.empty(0, dtype=np.bool_))
        found = self._mismatched(refs)
        is_answer_G = self._is_answer(micro)
        is_strange_G = place_by_segment(found.micro, found.is_strange) > 0
        return AttachedAnswers(
            reference_G,
            found.micro,
            place_by_segment(found.micro, found.reference),
            is_strange_G & is_answer_G,  # segments are as many, in the same packs
        )

    def begin(self, policy: Policy, batch: StepBatch) -> None:
        """Find the point of KTO. Collective: every rank."""
        if self._mismatched is None:
            return
        total = torch.zeros(2, dtype=torch.float64, device=policy.device)
        with policy.evaluating():
            for micro in batch.micro_batches:
                assert isinstance(micro.attached, AttachedAnswers) and micro.attached.mismatched is not None
                sums_G, _ = _sums_by_segment(policy, micro.attached.mismatched)
                ratios_G = sums_G - _moved(micro.attached.mismatched_reference_G, policy.device)
                is_strange_G = _moved(micro.attached.is_strange_G, policy.device)
                total[0] += (ratios_G * is_strange_G).sum()
                total[1] += is_strange_G.sum()
        ratio_sum, count = policy.mesh.sum(total.tolist())
        self._point = reference_point(torch.tensor(ratio_sum, dtype=torch.float64), max(count, 1.0))

    def warning(self, record: Mapping[str, float]) -> str | None:
        """Say nothing."""
        return None

    def terms(self, policy: Policy, micro: MicroBatch, sums: Sums) -> Sequence[Part]:
        """Take the losses of the answers of a micro-batch, and of what else is in it."""
        assert isinstance(micro.attached, AttachedAnswers)
        sums_G, lengths_G = _sums_by_segment(policy, micro)
        is_answer_G = self._is_answer(micro)
        at_A = np.flatnonzero(is_answer_G)
        on_device_A = _moved(at_A, policy.device)
        ratios_A = sums_G[on_device_A] - _moved(micro.attached.reference_G[at_A], policy.device)
        is_desirable_A = _moved(_label_sums(micro)[at_A] > 0, policy.device)
        point = self._point.to(policy.device)
        loss_A = answer_losses(ratios_A, is_desirable_A, point, self._options)
        sums.add(LOSS, loss_A.detach().sum())
        sums.add(POINT, point * len(at_A))
        rewards_A = self._options.chosen_beta * ratios_A.detach()
        numbers = (rewards_A, sums_G.detach()[on_device_A], _moved(lengths_G[at_A], policy.device).double())
        for side, is_of_A in zip(SIDES, (is_desirable_A, ~is_desirable_A), strict=True):
            for name, values_A in zip(("reward", "log_prob", "length"), numbers, strict=True):
                sums.add(f"{name}_{side}", (values_A * is_of_A).sum())
            sums.add(f"num_{side}", is_of_A.sum())
        is_document_G = (micro.units_S >= 0) & ~is_answer_G
        return [Part(loss_A.sum(), PER_ANSWER), *self._others.parts(micro, sums_G, is_document_G, sums)]

    def _is_answer(self, micro: MicroBatch) -> Bools:
        """Tell of each segment whether it is an answer that counts."""
        pack_G = micro.cu_seq_lens[:-1] // micro.tokens_BT.shape[1]
        found: Bools = np.isin(np.array(micro.source_B)[pack_G], self._sources) & (micro.units_S >= 0)
        return found


def _sums_by_segment(policy: Policy, micro: MicroBatch) -> tuple[Tensor, np.ndarray]:
    """Return the sums of log-probabilities [G], and the tokens of each, on the host."""
    asked = asked_of(micro, with_prompts=False)
    log_probs_S: Tensor = policy.answer(
        LogProbs(_moved(asked.rows_S, policy.device), _moved(asked.targets_S, policy.device)), micro
    )
    lengths_G = asked.lengths_G(len(micro.units_S))
    return sums_of(log_probs_S, lengths_G), lengths_G


def _label_sums(micro: MicroBatch) -> Float64s:
    """Return the label of each segment times its tokens, float64 [G]."""
    labels_BT = micro.values_BT[TokenValue.label.value]
    segments_N = micro.segments_BT.reshape(-1)
    found: Float64s = np.bincount(
        segments_N, weights=labels_BT.reshape(-1), minlength=len(micro.units_S)
    ).astype(np.float64)
    return found


def _moved(numbers: np.ndarray, device: torch.device) -> Tensor:
    return move(torch.from_numpy(numbers), device)
