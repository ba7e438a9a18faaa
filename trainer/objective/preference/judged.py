"""How a model ranks pairs that it was not trained on. Pure.

Shapes: P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.config.preference import NllMean, PreferenceConfig
from trainer.evaluate.histogram import NOTHING, Histogram, histogram_of
from trainer.evaluate.wilson import wilson_interval
from trainer.objective.preference.nll_term import nll_sum
from trainer.objective.preference.pair_losses import Sides, pair_losses, rewards


@dataclass(frozen=True, slots=True)
class RankedPairs:
    """Pairs, and those of them whose chosen answer has the larger reward."""

    num_pairs: int
    num_right: int

    @property
    def accuracy(self) -> float | None:
        """Return the share that is right; None without pairs."""
        return self.num_right / self.num_pairs if self.num_pairs else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Return the 95 % interval of that share."""
        return wilson_interval(self.num_right, self.num_pairs) if self.num_pairs else None


@dataclass(frozen=True, slots=True)
class JudgedPairs:
    """What a loss says of held-out pairs."""

    loss: float
    """Mean over pairs, without the cross-entropy beside it."""
    whole: float
    """With it, as `loss` of a step has it; of answers alone where that of a step is over prompts too."""
    reward_chosen: float
    reward_rejected: float
    """Means of what the loss compares, times beta."""
    ranked: RankedPairs
    longer: RankedPairs
    """Those whose chosen answer has more tokens: a model that only likes long answers is right there alone."""
    shorter: RankedPairs
    histogram: Histogram = NOTHING
    """Of margins: how far each chosen answer is ahead."""

    @property
    def margin(self) -> float:
        """Return how far the chosen answer is ahead in the mean."""
        return self.reward_chosen - self.reward_rejected

    def to_plain(self) -> dict[str, Any]:
        """Return what is kept in evaluation.json."""
        interval = self.ranked.interval
        return {
            "loss": self.loss,
            "margin": self.margin,
            "accuracy": self.ranked.accuracy,
            "interval": None if interval is None else list(interval),
            "num_pairs": self.ranked.num_pairs,
            "accuracy_longer": self.longer.accuracy,
            "num_longer": self.longer.num_pairs,
            "accuracy_shorter": self.shorter.accuracy,
            "num_shorter": self.shorter.num_pairs,
            "margins": self.histogram.to_plain(),
        }


def judge(chosen: Sides, rejected: Sides, options: PreferenceConfig) -> JudgedPairs:
    """Rank pairs as the loss compares their answers; a tie is not right."""
    first_P, second_P = (rewards(side, options) for side in (chosen, rejected))
    loss_P, ahead_P = pair_losses(chosen, rejected, options), chosen.lengths_P - rejected.lengths_P
    count = int(chosen.lengths_P.sum()) if options.nll_mean is NllMean.tokens else len(chosen.lengths_P)
    nll = float(nll_sum(chosen.sums_P, chosen.lengths_P, options.nll_mean)) / count
    return judged_pairs(first_P, second_P, loss_P, ahead_P, options.chosen_nll_weight * nll)


def judged_pairs(
    first_P: Tensor, second_P: Tensor, loss_P: Tensor, ahead_P: Tensor, beside: float = 0.0
) -> JudgedPairs:
    """Rank pairs by the rewards of their chosen and their rejected answers.

    Args:
        ahead_P: By how many tokens the chosen answer is longer.
        beside: What a step adds to the mean of the loss.
    """
    is_right_P = first_P > second_P

    def ranked(is_counted_P: Tensor) -> RankedPairs:
        return RankedPairs(int(is_counted_P.sum()), int((is_right_P & is_counted_P).sum()))

    loss = float(loss_P.mean())
    return JudgedPairs(
        loss=loss,
        whole=loss + beside,
        reward_chosen=float(first_P.mean()),
        reward_rejected=float(second_P.mean()),
        ranked=ranked(torch.ones_like(is_right_P)),
        longer=ranked(ahead_P > 0),
        shorter=ranked(ahead_P < 0),
        histogram=histogram_of((first_P - second_P).double().numpy()),
    )
