"""How a reward model ranks pairs that it was not trained on. Pure."""

from __future__ import annotations

import torch

from trainer.config.reward import RewardConfig
from trainer.evaluate.held_out_scores import PairScores
from trainer.objective.preference.judged import JudgedPairs, judged_pairs
from trainer.objective.reward.reward_losses import off_centre, pair_losses


def judge_scores(found: PairScores, options: RewardConfig) -> JudgedPairs:
    """Rank pairs by their scores; a tie is not right. The loss is that of training, with margin and centring."""
    chosen_P, rejected_P, margin_P = map(torch.from_numpy, (found.chosen_P, found.rejected_P, found.margin_P))
    loss_P = pair_losses(chosen_P, rejected_P, margin_P) + options.centre * off_centre(chosen_P, rejected_P)
    ahead_P = torch.from_numpy(found.chosen_tokens_P - found.rejected_tokens_P)
    return judged_pairs(chosen_P, rejected_P, loss_P, ahead_P)
