"""Who tells a step what another model says of its text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from trainer.data.pack.collate import MicroBatch
from trainer.data.pack.refs import PackRef
from trainer.engine.policy import Policy
from trainer.model.head.divergence import TopTokens


class Teacher(Protocol):
    """What the base model says of replay: kept on disk, or asked of the model with its adapter off."""

    def attach(self, micro: MicroBatch, refs: Sequence[PackRef]) -> object | None:
        """Read what is kept of these packs, on the loader's thread."""

    def top_tokens(self, policy: Policy, micro: MicroBatch) -> TopTokens | None:
        """Return the teacher's most likely tokens at positions of a micro-batch; None if it has none there.

        Collective: every rank, for every micro-batch, because one that asks the model runs it.
        """
