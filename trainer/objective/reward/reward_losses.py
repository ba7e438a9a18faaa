"""What is minimised of the scores of a pair. Pure.

Shapes: P pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pair_losses(chosen_P: Tensor, rejected_P: Tensor, margin_P: Tensor) -> Tensor:
    """Return -log sigmoid(chosen - rejected - margin) of each pair [P]; who sums them divides once by pairs.

    Source: Bradley and Terry 1952; the margin is that of Llama 2, arXiv:2307.09288 section 3.2.2.
    """
    return -torch.nn.functional.logsigmoid(chosen_P - rejected_P - margin_P)


def off_centre(chosen_P: Tensor, rejected_P: Tensor) -> Tensor:
    """Return (chosen + rejected)^2 of each pair [P], which keeps scores near 0: the loss reads their difference alone.

    Source: Eisenstein et al. 2023, arXiv:2312.09244.
    """
    return (chosen_P + rejected_P).square()
