"""Config section for reward models: a score of an answer, learnt from pairs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class RewardConfig:
    """How scores are learnt from pairs (Bradley-Terry)."""

    centre: float = 0.0
    """Weight of the mean of (score of the chosen answer + score of the rejected one)^2, which keeps scores near 0
    (arXiv:2312.09244, TRL's center_rewards_coefficient); 0.01 is usual. Range: 0 or more."""

    @property
    def described(self) -> str:
        """Return what is minimised, as it is told at the start of a run and in its report."""
        centred = f", plus {self.centre:g} x the mean of their squared sum" if self.centre else ""
        return (
            "`loss` is what is minimised: the mean over pairs of -log sigmoid(score of the chosen answer - that of the "
            f"rejected one - margin), no unit{centred}."
        )
