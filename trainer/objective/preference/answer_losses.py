"""What is minimised of an answer with a label, and the point that KTO measures from. Pure.

Shapes: A answers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.config.preference import PreferenceConfig, PreferenceLoss


def answer_losses(
    ratios_A: Tensor, is_desirable_A: Tensor, point: Tensor, options: PreferenceConfig
) -> Tensor:
    """Return the loss of each answer [A], its weight in it; who sums them divides once by the answers of the step.

    Args:
        ratios_A: How much more likely each answer is than to the reference, in nats, with a gradient.
        is_desirable_A: Its label, bool.
        point: Of `reference_point`, without a gradient; not read by apo_zero_unpaired.
    Source: KTO, arXiv:2402.01306 equation 7; APO, arXiv:2408.06266; trl 1.16.
    """
    assert not options.is_paired, f"{options.loss.value} is of pairs"
    beyond_A = ratios_A - point.detach() if options.loss is PreferenceLoss.kto else ratios_A
    # 1 - sigmoid(x) as sigmoid(-x), which keeps its digits.
    toward_A = torch.where(is_desirable_A, -beyond_A, beyond_A)
    weights_A = torch.full_like(ratios_A, options.undesirable_weight)
    weights_A.masked_fill_(is_desirable_A, options.desirable_weight)
    return weights_A * torch.sigmoid(options.chosen_beta * toward_A)


def reference_point(ratio_sum: Tensor, num_answers: float) -> Tensor:
    """Return z of KTO: the mean log-ratio of answers to prompts of others, 0 where the mean is less.

    Args:
        ratio_sum: Over all such answers of a step, of all micro-batches and ranks: so z is one number for all of them.
        num_answers: How many there are, at least one.
    """
    return (ratio_sum.detach() / num_answers).clamp(min=0.0)
