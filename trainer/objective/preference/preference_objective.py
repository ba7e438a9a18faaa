"""Losses of pairs, the cross-entropy of chosen answers beside them, and that of sources without preferences.

Each part has a denominator of its own, known from the plan: the pairs of the step, the tokens of its chosen answers,
the supervised tokens of other sources. So nothing depends on how pairs fall into packs, micro-batches and ranks.

Shapes: S tokens asked about, G segments, P pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from trainer.config.data import TokenValue
from trainer.config.preference import NllMean, NllOver, PreferenceConfig
from trainer.data.pack.collate import MicroBatch
from trainer.data.pack.pairs import first_of_pairs
from trainer.data.pack.refs import PackRef
from trainer.data.types import Int64s, Unit
from trainer.engine.model_inputs import moved
from trainer.engine.policy import Policy
from trainer.metrics.mean import Mean
from trainer.mix.loader import StepBatch
from trainer.model.head.log_probs import LogProbs
from trainer.objective.contract import Part, Sums
from trainer.objective.preference.falling import FallingRewards
from trainer.objective.preference.nll_term import nll_sum
from trainer.objective.preference.other_sources import OtherSources
from trainer.objective.preference.pair_losses import Sides, pair_losses, rewards
from trainer.objective.preference.read_reference import ReadReference
from trainer.objective.preference.sums import AskedTokens, asked_of, place_by_segment, sums_of

PAIRS, NLL_COUNT = "pairs", "nll_chosen_count"
PER_PAIR, PER_NLL = "per_pair", "per_nll_chosen"
"""What divides the loss: the counts, but 1 where a step has no pair."""
LOSS, CORRECT, MARGIN, NLL = "pair_loss", "correct", "reward_margin", "nll_chosen_sum"
REWARDS = ("reward_chosen", "reward_rejected")
LOG_PROBS = ("log_prob_chosen", "log_prob_rejected")
LENGTHS = ("length_chosen", "length_rejected")


class PreferenceObjective:
    """A loss of pairs. Implements Objective."""

    def __init__(
        self,
        names: Sequence[str],
        units: Sequence[Unit],
        options: PreferenceConfig,
        reference: ReadReference | None = None,
    ) -> None:
        """Take the sources' names and what each keeps whole, in their order, and who knows the reference's sums."""
        assert options.is_paired, "answers with labels have an objective of their own"
        assert options.needs_reference <= (reference is not None), "the loss needs a reference"
        self._options = options
        self._reference = reference
        self._falling = FallingRewards(options)
        self._paired = [name for name, unit in zip(names, units, strict=True) if unit is Unit.pair]
        others = [name for name in names if name not in self._paired]
        self._others = OtherSources(names, others, options.text_weight)

    @property
    def sum_names(self) -> tuple[str, ...]:
        """Return the sums over pairs, and the sum of losses of each source without pairs."""
        of_pairs = (LOSS, CORRECT, MARGIN, NLL, *REWARDS, *LOG_PROBS, *LENGTHS)
        return (*of_pairs, *self._others.sum_names)

    @property
    def means(self) -> tuple[Mean, ...]:
        """Return what is minimised and its parts, and how often and how far the chosen answer is ahead.

        `loss` is `pair_loss`, and `nll_chosen` and the loss of other sources with their weights. Rewards are what the
        loss compares, times beta: log-ratios to the reference or log-probabilities, sums or means.
        """
        weight, nll = self._options.chosen_nll_weight, Mean("nll_chosen", (NLL,), (NLL_COUNT,))
        added = (*(((weight, nll),) if weight else ()), *self._others.added)
        found = [Mean("loss", (LOSS,), (PAIRS,), plus=added), Mean(LOSS, (LOSS,), (PAIRS,))]
        found += [nll] if weight else []
        found.append(Mean("preference_accuracy", (CORRECT,), (PAIRS,)))
        found += [Mean(name, (name,), (PAIRS,)) for name in (*REWARDS, MARGIN, *LOG_PROBS, *LENGTHS)]
        found += [
            Mean(f"{log_prob}_token", (log_prob,), (length,))
            for log_prob, length in zip(LOG_PROBS, LENGTHS, strict=True)
        ]
        return (*found, *self._others.means)

    def counts(self, batch: StepBatch) -> Mapping[str, float]:
        """Return the pairs of the step, what its chosen answers' cross-entropy is a mean over, and other targets."""
        num_pairs = sum(batch.num_units_by_source[name] for name in self._paired)
        nll_count = self._nll_count(batch, num_pairs)
        return {
            **self._others.counts(batch),
            PAIRS: num_pairs,
            PER_PAIR: max(num_pairs, 1),
            NLL_COUNT: nll_count,
            PER_NLL: max(nll_count, 1),
        }

    def _nll_count(self, batch: StepBatch, num_pairs: int) -> float:
        if self._options.nll_mean is NllMean.answers:
            return num_pairs
        if self._options.nll_over is NllOver.prompt_and_answer:
            return batch.num_chosen
        # Tokens of a chosen answer carry the label 1, those of a rejected one -1.
        labels = batch.value_sums_by_source[TokenValue.label.value]
        return sum((batch.num_targets_by_source[name] + labels[name]) / 2 for name in self._paired)

    def attach(self, micro: MicroBatch, refs: Sequence[PackRef]) -> object | None:
        """Read the reference's sums, float64 [G]."""
        return None if self._reference is None else place_by_segment(micro, self._reference(refs))

    def begin(self, policy: Policy, batch: StepBatch) -> None:
        """Need nothing of the whole step."""

    def warning(self, record: Mapping[str, float]) -> str | None:
        """Say once that both answers become less likely."""
        return self._falling.look(record)

    def terms(self, policy: Policy, micro: MicroBatch, sums: Sums) -> Sequence[Part]:
        """Take the losses of the pairs of a micro-batch, and of what else is in it."""
        asked = asked_of(micro, self._learns_prompts)
        places = (moved(found, policy.device) for found in (asked.rows_S, asked.targets_S))
        log_probs_S: Tensor = policy.answer(LogProbs(*places), micro)
        lengths_G = asked.lengths_G(len(micro.units_S))
        learnt = np.flatnonzero(asked.is_learnt_S)
        learnt_S = log_probs_S[moved(learnt, policy.device)] if self._learns_prompts else log_probs_S
        sums_G = sums_of(learnt_S, lengths_G)
        first_P = first_of_pairs(micro.units_S)
        chosen, rejected = (self._side(micro, sums_G, lengths_G, at_P) for at_P in (first_P, first_P + 1))
        loss_P = pair_losses(chosen, rejected, self._options)
        self._note(chosen, rejected, loss_P, sums)
        parts = [Part(loss_P.sum(), PER_PAIR)]
        if self._options.chosen_nll_weight:
            whole = (
                self._whole(asked, log_probs_S, first_P, len(micro.units_S))
                if self._learns_prompts
                else chosen
            )
            loss = nll_sum(whole.sums_P, whole.lengths_P, self._options.nll_mean)
            sums.add(NLL, loss.detach())
            parts.append(Part(self._options.chosen_nll_weight * loss, PER_NLL))
        is_document_G = micro.units_S >= 0
        is_document_G[first_P] = is_document_G[first_P + 1] = False
        return [*parts, *self._others.parts(micro, sums_G, is_document_G, sums)]

    @property
    def _learns_prompts(self) -> bool:
        options = self._options
        return options.chosen_nll_weight > 0 and options.nll_over is NllOver.prompt_and_answer

    def _whole(self, asked: AskedTokens, log_probs_S: Tensor, first_P: Int64s, num_segments: int) -> Sides:
        """Return the chosen answers with their prompts."""
        lengths_G = asked.lengths_G(num_segments, learnt_only=False)
        at_P, device = moved(first_P, log_probs_S.device), log_probs_S.device
        return Sides(sums_of(log_probs_S, lengths_G)[at_P], moved(lengths_G[first_P], device), None)

    def _side(self, micro: MicroBatch, sums_G: Tensor, lengths_G: Int64s, at_P: Int64s) -> Sides:
        reference_P = None
        if self._reference is not None:
            assert isinstance(micro.attached, np.ndarray)
            reference_P = moved(micro.attached[at_P], sums_G.device)
        return Sides(sums_G[moved(at_P, sums_G.device)], moved(lengths_G[at_P], sums_G.device), reference_P)

    def _note(self, chosen: Sides, rejected: Sides, loss_P: Tensor, sums: Sums) -> None:
        """Add up what is reported of pairs."""
        sums.add(LOSS, loss_P.detach().sum())
        found_rewards = [rewards(side, self._options) for side in (chosen, rejected)]
        sums.add(CORRECT, (found_rewards[0] > found_rewards[1]).double().sum())
        sums.add(MARGIN, (found_rewards[0] - found_rewards[1]).double().sum())
        for names, found in (
            (REWARDS, found_rewards),
            (LOG_PROBS, [side.sums_P.detach() for side in (chosen, rejected)]),
            (LENGTHS, [side.lengths_P for side in (chosen, rejected)]),
        ):
            for name, values_P in zip(names, found, strict=True):
                sums.add(name, values_P.double().sum())
