"""The cross-entropy of chosen answers beside a loss of pairs, which keeps them likely. Pure.

It has a denominator of its own: the tokens of the step, or the pairs of the step.

Shapes: P pairs.
"""

from __future__ import annotations

from typing import assert_never

from torch import Tensor

from trainer.config.preference import NllMean


def nll_sum(sums_P: Tensor, lengths_P: Tensor, mean: NllMean) -> Tensor:
    """Return what, divided by the step's count of tokens or of pairs, is the mean cross-entropy; with a gradient.

    Args:
        sums_P: Of the log-probabilities of what is learnt of each chosen answer, or of its prompt too.
        lengths_P: How many they are, at least one.
    """
    match mean:
        case NllMean.tokens:
            return -sums_P.sum()
        case NllMean.answers:
            return -(sums_P / lengths_P).sum()
        case _:
            assert_never(mean)
