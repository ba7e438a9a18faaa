"""What a task of our own is: questions that are laid out once, and asked of one model after the other."""

from __future__ import annotations

from typing import Protocol

from trainer.evaluate.tasks.batches import TaskModel
from trainer.evaluate.tasks.score import TaskScore
from trainer.model.tokenizer import Tokenizer


class AskedTask(Protocol):
    """Asks a model and judges what it says."""

    @property
    def digest(self) -> str:
        """Name all that is asked, and how it is judged."""

    def run(self, model: TaskModel, tokenizer: Tokenizer) -> list[TaskScore]:
        """Ask the loaded model. Collective: every rank; all get the same."""
