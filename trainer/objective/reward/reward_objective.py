"""The loss of a reward model: pairs of answers, each scored at its last token.

Divided once by the pairs of the step over all ranks, so nothing depends on how pairs fall into packs and micro-batches.

Shapes: G segments, P pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from trainer.config.reward import RewardConfig
from trainer.data.pack.collate import MicroBatch
from trainer.data.pack.margins import margins
from trainer.data.pack.pairs import first_of_pairs
from trainer.data.pack.refs import PackRef
from trainer.engine.model_inputs import moved
from trainer.engine.policy import Policy
from trainer.metrics.mean import Mean
from trainer.mix.loader import StepBatch
from trainer.model.head.rewards import Rewards
from trainer.objective.contract import Part, Sums
from trainer.objective.reward.reward_losses import off_centre, pair_losses

PAIRS, PER_PAIR = "pairs", "per_pair"
"""The pairs of the step, and what divides the loss: 1 where it has none."""
LOSS, CORRECT, MARGIN, CENTRE = "pair_loss", "correct", "reward_margin", "off_centre"
SIDES = ("reward_chosen", "reward_rejected")
ASKED = "asked_margin"


class RewardObjective:
    """Scores of pairs. Implements Objective."""

    def __init__(self, names: Sequence[str], options: RewardConfig) -> None:
        """Take the names of the sources, all of pairs."""
        self._names, self._options = tuple(names), options

    @property
    def sum_names(self) -> tuple[str, ...]:
        """Return the sums over pairs."""
        return (LOSS, CORRECT, MARGIN, CENTRE, ASKED, *SIDES)

    @property
    def means(self) -> tuple[Mean, ...]:
        """Return what is minimised, and how often and how far the chosen answer is ahead; all over pairs, no unit.

        `loss` is `pair_loss`, and `off_centre` with its weight.
        """
        centre = Mean(CENTRE, (CENTRE,), (PAIRS,))
        weight = self._options.centre
        found = [
            Mean("loss", (LOSS,), (PAIRS,), plus=((weight, centre),) if weight else ()),
            Mean(LOSS, (LOSS,), (PAIRS,)),
            Mean("preference_accuracy", (CORRECT,), (PAIRS,)),
        ]
        return (*found, *(Mean(name, (name,), (PAIRS,)) for name in (*SIDES, MARGIN, ASKED)), centre)

    def counts(self, batch: StepBatch) -> Mapping[str, float]:
        """Return the pairs of the step."""
        num_pairs = sum(batch.num_units_by_source[name] for name in self._names)
        return {PAIRS: num_pairs, PER_PAIR: max(num_pairs, 1)}

    def attach(self, micro: MicroBatch, refs: Sequence[PackRef]) -> object | None:
        """Need nothing beside the tokens."""
        return None

    def begin(self, policy: Policy, batch: StepBatch) -> None:
        """Need nothing of the whole step."""

    def warning(self, record: Mapping[str, float]) -> str | None:
        """Say nothing."""
        return None

    def terms(self, policy: Policy, micro: MicroBatch, sums: Sums) -> Sequence[Part]:
        """Score both answers of the pairs of a micro-batch."""
        first_P, last_G = first_of_pairs(micro.units_S), micro.last_S
        rows_K = moved(np.concatenate([last_G[first_P], last_G[first_P + 1]]), policy.device)
        scores_K = policy.answer(Rewards(rows_K), micro).double()
        chosen_P, rejected_P = scores_K[: len(first_P)], scores_K[len(first_P) :]
        margin_P = moved(margins(micro)[first_P], policy.device)
        loss_P = pair_losses(chosen_P, rejected_P, margin_P)
        apart_P = off_centre(chosen_P, rejected_P)
        with torch.no_grad():
            for name, values_P in (
                (LOSS, loss_P),
                (CORRECT, (chosen_P > rejected_P).double()),
                (MARGIN, chosen_P - rejected_P),
                (CENTRE, apart_P),
                (ASKED, margin_P),
                (SIDES[0], chosen_P),
                (SIDES[1], rejected_P),
            ):
                sums.add(name, values_P.sum())
        return [Part(loss_P.sum() + self._options.centre * apart_P.sum(), PER_PAIR)]
