"""What is minimised of a pair of answers to one prompt, each loss as its owner defines it. Pure.

A loss is that of each pair; who sums them divides once by the number of pairs of the step. Nothing here knows of
micro-batches, so nothing depends on them.

Shapes: P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from trainer.config.preference import OF_MEANS, PreferenceConfig, PreferenceLoss


@dataclass(frozen=True, slots=True)
class Sides:
    """One side of the pairs: the chosen answers, or the rejected ones. float32, or float64."""

    sums_P: Tensor
    """Of the log-probabilities of each answer's tokens, with a gradient."""
    lengths_P: Tensor
    """Tokens of each answer, at least one."""
    reference_P: Tensor | None
    """The same sums by the reference; None where the loss needs none."""

    @property
    def means_P(self) -> Tensor:
        """Log-probability of a token, by answer."""
        return self.sums_P / self.lengths_P

    @property
    def ratios_P(self) -> Tensor:
        """How much more likely each answer is than to the reference, in nats."""
        assert self.reference_P is not None, "the loss needs a reference"
        return self.sums_P - self.reference_P

    @property
    def mean_ratios_P(self) -> Tensor:
        """The same of a token, by answer."""
        return self.ratios_P / self.lengths_P


def pair_losses(chosen: Sides, rejected: Sides, options: PreferenceConfig) -> Tensor:
    """Return the loss of each pair [P], without the cross-entropy that nll_weight adds.

    Source: the paper or library that LOSS_DEFAULTS names for each, and trl 1.16.
    """
    assert options.is_paired, f"{options.loss.value} is of answers with labels"
    if options.needs_reference:
        return _compared(chosen, rejected, options)
    return _free(chosen, rejected, options)


def rewards(side: Sides, options: PreferenceConfig) -> Tensor:
    """Return what the loss compares of each answer [P], times beta, without a gradient."""
    of_means = options.loss in OF_MEANS
    if options.needs_reference:
        found = side.mean_ratios_P if of_means else side.ratios_P
    else:
        found = side.means_P if of_means else side.sums_P
    return options.chosen_beta * found.detach()


def _compared(chosen: Sides, rejected: Sides, options: PreferenceConfig) -> Tensor:
    """Return the losses that compare the model with a reference."""
    beta, noise = options.chosen_beta, options.label_noise
    gap_P = chosen.ratios_P - rejected.ratios_P
    match options.loss:
        case PreferenceLoss.dpo:
            return -logsigmoid(beta * gap_P)
        case PreferenceLoss.conservative:
            return -(1 - noise) * logsigmoid(beta * gap_P) - noise * logsigmoid(-beta * gap_P)
        case PreferenceLoss.robust:
            loss_P = -(1 - noise) * logsigmoid(beta * gap_P) + noise * logsigmoid(-beta * gap_P)
            return loss_P / (1 - 2 * noise)
        case PreferenceLoss.normalised:
            return -logsigmoid(beta * (chosen.mean_ratios_P - rejected.mean_ratios_P))
        case PreferenceLoss.ipo:
            return (chosen.mean_ratios_P - rejected.mean_ratios_P - 1 / (2 * beta)) ** 2
        case PreferenceLoss.ipo_sum:
            return (gap_P - 1 / (2 * beta)) ** 2
        case PreferenceLoss.hinge:
            return relu(1 - beta * gap_P)
        case PreferenceLoss.apo_zero:
            return torch.sigmoid(-beta * chosen.ratios_P) + torch.sigmoid(beta * rejected.ratios_P)
        case PreferenceLoss.apo_down:
            return torch.sigmoid(beta * chosen.ratios_P) + torch.sigmoid(-beta * gap_P)
        case _:
            raise AssertionError(options.loss)


def _free(chosen: Sides, rejected: Sides, options: PreferenceConfig) -> Tensor:
    """Return the losses without a reference."""
    beta = options.chosen_beta
    match options.loss:
        case PreferenceLoss.simpo:
            return -logsigmoid(beta * (chosen.means_P - rejected.means_P) - options.gamma)
        case PreferenceLoss.cpo:
            return -logsigmoid(beta * (chosen.sums_P - rejected.sums_P))
        case PreferenceLoss.orpo:
            return -beta * logsigmoid(_log_odds(chosen.means_P) - _log_odds(rejected.means_P))
        case _:
            raise AssertionError(options.loss)


def _log_odds(log_probs_P: Tensor) -> Tensor:
    """Return log(p / (1 - p)) of log p. A p of 1, whose odds have no end, is taken for the one next below it."""
    below_P = log_probs_P.clamp(max=-torch.finfo(log_probs_P.dtype).eps)
    # log(1 - p) loses its digits in one form near p = 1 and in the other near p = 0; log 2 is where they meet.
    is_likely_P = below_P > -0.6931471805599453
    likely_P = torch.log(-torch.expm1(torch.where(is_likely_P, below_P, -1.0)))
    unlikely_P = torch.log1p(-torch.exp(torch.where(is_likely_P, -1.0, below_P)))
    return below_P - torch.where(is_likely_P, likely_P, unlikely_P)
