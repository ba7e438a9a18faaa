"""How long a run will take, from one forward pass, where a step takes so long that a person would wonder."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.metrics.console import duration_text

LONG_S = 45.0
"""Seconds of a step from which it is said before the first one."""
PASSES = 3
"""Forward passes that forward and backward take; one more where layers are recomputed."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What lies before a run; tokens are one rank's."""

    forward_s: float
    """Seconds of a forward pass."""
    forward_tokens: int
    """Tokens of that pass."""
    step_tokens: int
    """Tokens of an optimizer step."""
    num_steps: int
    """Steps that are left."""
    recomputed_share: float
    """Share of the layers whose forward pass is run twice."""
    evaluation_tokens: int
    """Tokens of one evaluation."""
    num_evaluations: int

    @property
    def step_s(self) -> float:
        """Return the seconds of a step."""
        return self._token_s * self.step_tokens * (PASSES + self.recomputed_share)

    @property
    def run_s(self) -> float:
        """Return the seconds of all steps and evaluations that are left."""
        evaluation_s = self._token_s * self.evaluation_tokens
        return self.num_steps * self.step_s + self.num_evaluations * evaluation_s

    @property
    def sentence(self) -> str | None:
        """Return what a person should know before the first step; None where steps are short."""
        if self.step_s < LONG_S or not self.num_steps:
            return None
        return (
            f"A step of {self.step_tokens:,} tokens a rank will take about {duration_text(self.step_s)} here, and what "
            f"is left of the run about {duration_text(self.run_s)}, by one forward pass."
        )

    @property
    def _token_s(self) -> float:
        return self.forward_s / self.forward_tokens
