"""The held-out pairs of a run of a reward model: scored and ranked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from trainer.config.objective import ObjectiveKind
from trainer.config.reward import RewardConfig
from trainer.engine.policy import Policy
from trainer.evaluate.held_out import HeldOut
from trainer.evaluate.held_out_scores import held_out_scores
from trainer.objective.preference.judged import JudgedPairs
from trainer.objective.reward.judged_scores import judge_scores
from trainer.run.session import Session


@dataclass(frozen=True, slots=True)
class ScoredPairs:
    """What scores the held-out pairs of a run."""

    policy: Policy
    held_out: HeldOut
    options: RewardConfig
    run_dir: Path

    def judge(self) -> dict[str, JudgedPairs]:
        """Score and rank the pairs of every source that has some. Collective: every rank."""
        found = held_out_scores(self.policy, self.held_out)
        return {name: judge_scores(scores, self.options) for name, scores in found.items()}


def scored_pairs(session: Session, heed: Callable[[], None] = lambda: None) -> ScoredPairs | None:
    """Return what scores the held-out pairs of a run; None where it trains no reward model.

    Args:
        heed: Called between batches; raises on all ranks where one is asked to stop.
    """
    options = session.config.objective
    if options.kind is not ObjectiveKind.reward:
        return None
    held_out = replace(session.held_out(), heed=heed)
    return ScoredPairs(session.policy, held_out, options.reward, session.run_dir)
