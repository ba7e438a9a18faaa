"""What the loop of a run works with, and why it ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from trainer.checkpoint.best import BestRule
from trainer.engine.policy import Policy
from trainer.mix.loader import StepLoader
from trainer.mix.mixing import Mixing
from trainer.objective.contract import Objective
from trainer.rounds.rounds import Rounds
from trainer.run.chooser import ReplayChooser
from trainer.run.during import DuringTraining
from trainer.run.evaluator import Evaluator
from trainer.run.journal import Journal
from trainer.run.pace import Pace
from trainer.run.save_clock import SaveClock
from trainer.run.saver import Saver
from trainer.run.spikes import SpikeWatch
from trainer.runtime.gc import ManualGc
from trainer.runtime.signals import StopFlag


class StopReason(Enum):
    """Why a run ended."""

    finished = "finished"
    early_stop = "early_stop"
    preempted = "preempted"
    non_finite = "non_finite"


@dataclass(slots=True)
class RunParts:
    """Everything the loop uses, built by training.py."""

    policy: Policy
    objective: Objective
    loader: StepLoader
    evaluator: Evaluator
    during: DuringTraining
    mixing: Mixing
    saver: Saver
    lr: Callable[[int], float]
    """Learning rate of a zero-based step."""
    journal: Journal
    stop_flag: StopFlag
    gc: ManualGc
    best: BestRule | None
    """None: no checkpoint is kept for being the best."""
    clock: SaveClock | None = None
    """None: saves are due by steps alone."""
    saves_in_background: bool = False
    """Steps wait only until what is saved is copied into host memory."""
    pace: Pace | None = None
    """None: nobody looks for slow ranks."""
    spikes: SpikeWatch | None = None
    """None: nobody looks for spikes."""
    chooser: ReplayChooser | None = None
    """None: replay comes in the order of its permutation."""
    rounds: Rounds | None = None
    """None: the model learns from what the data says alone."""
