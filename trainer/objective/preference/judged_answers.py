"""What a loss of answers with labels says of answers that it was not trained on. Pure.

Shapes: A answers.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from trainer.config.preference import PreferenceConfig, PreferenceLoss
from trainer.objective.preference.answer_losses import answer_losses


@dataclass(frozen=True, slots=True)
class JudgedAnswers:
    """What is said of the held-out answers of a source."""

    loss: float
    """Mean over answers, with the weights of training: `answer_loss` of what is held out."""
    reward_desirable: float | None
    """Means over the answers of each label, times beta; None where none is held out."""
    reward_undesirable: float | None
    num_desirable: int
    num_undesirable: int
    point: float | None
    """Of KTO, in nats: one for all sources; None where the loss measures from none."""

    @property
    def whole(self) -> float:
        """Return what stands for the source in `eval_mean`."""
        return self.loss

    def to_plain(self) -> dict[str, Any]:
        """Return what is kept in evaluation.json."""
        return dataclasses.asdict(self)


def judge_answers(
    ratios_A: Tensor, is_desirable_A: Tensor, point: Tensor, options: PreferenceConfig
) -> JudgedAnswers:
    """Judge answers by how much more likely each is than to the reference, as a step does; A is at least 1."""
    rewards_A = options.chosen_beta * ratios_A
    num_desirable = int(is_desirable_A.sum())
    num_others = len(ratios_A) - num_desirable
    return JudgedAnswers(
        loss=float(answer_losses(ratios_A, is_desirable_A, point, options).mean()),
        reward_desirable=float(rewards_A[is_desirable_A].mean()) if num_desirable else None,
        reward_undesirable=float(rewards_A[~is_desirable_A].mean()) if num_others else None,
        num_desirable=num_desirable,
        num_undesirable=num_others,
        point=float(point) if options.loss is PreferenceLoss.kto else None,
    )
