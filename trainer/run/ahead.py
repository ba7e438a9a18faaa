"""What is decided about the steps ahead by the weights as they are: which replay comes, what the model answers.

Collective everywhere: every rank, same order.
"""

from __future__ import annotations

import time

from trainer.checkpoint.state import TrainState
from trainer.dist.progress import PROGRESS, Phase
from trainer.run.heed import GivenUp, heeding
from trainer.run.parts import RunParts


def look_ahead(parts: RunParts, state: TrainState, is_over: bool = False) -> bool:
    """Choose replay and sample the next round, where that is due; tell whether ranks are to stop instead.

    What a stop leaves undone is made up for by the next start, with the same weights.

    Args:
        is_over: No step follows, so nothing is sampled for one.
    """
    return choose(parts, state) or (not is_over and sample_round(parts, state))


def choose(parts: RunParts, state: TrainState) -> bool:
    """Choose which replay comes next, if that is due; tell whether ranks are to stop instead. Collective: every rank.

    What a stop leaves undone is made up for by the next start, with the same weights.
    """
    if parts.chooser is None or not parts.chooser.is_due(state):
        return False
    PROGRESS.begin(Phase.evaluate)
    started = time.perf_counter()
    try:
        choices = parts.chooser.choose(state)
    except GivenUp:
        return True
    parts.journal.chose(state, choices, time.perf_counter() - started)
    return False


def sample_round(parts: RunParts, state: TrainState) -> bool:
    """Let the model answer the prompts of the next round, if one is due; tell whether ranks are to stop instead."""
    if parts.rounds is None or not parts.rounds.is_due(state):
        return False
    PROGRESS.begin(Phase.generate)
    started = time.perf_counter()
    try:
        made = parts.rounds.make(state, heeding(parts.policy.mesh, parts.stop_flag))
    except GivenUp:
        return True
    parts.journal.sampled(state, made, time.perf_counter() - started)
    return False


def take_round_again(parts: RunParts, state: TrainState) -> None:
    """Stand in the round of a checkpoint that was gone back to; one that was not sampled is, whoever asks to stop."""
    if parts.rounds is None:
        return
    parts.rounds.restore(state)
    if parts.rounds.is_due(state):
        started = time.perf_counter()
        made = parts.rounds.make(state, PROGRESS.mark)
        parts.journal.sampled(state, made, time.perf_counter() - started)
