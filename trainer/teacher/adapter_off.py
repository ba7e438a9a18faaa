"""The base model as the trained one with its adapter off.

Shapes: R supervised replay positions of a micro-batch, K most likely tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from trainer.data.pack.collate import IGNORE, MicroBatch
from trainer.data.pack.refs import PackRef
from trainer.engine.model_inputs import move
from trainer.engine.policy import Policy
from trainer.model.head.divergence import TopTokens
from trainer.model.tune.adapters import adapter_off


@dataclass(frozen=True, slots=True)
class AdapterBase:
    """Asks the base with one more forward pass. Implements Teacher."""

    beta: float
    num_top: int
    replay: frozenset[int]
    """Numbers of the replay sources."""

    def attach(self, micro: MicroBatch, refs: Sequence[PackRef]) -> None:
        """Read nothing."""

    def top_tokens(self, policy: Policy, micro: MicroBatch) -> TopTokens | None:
        """Ask the base about this micro-batch."""
        labels_BT = micro.labels_BT.copy()
        labels_BT[[row for row, source in enumerate(micro.source_B) if source not in self.replay]] = IGNORE
        with policy.evaluating(), adapter_off(policy.module):
            ids_RK, log_probs_RK = policy.top(dataclasses.replace(micro, labels_BT=labels_BT), self.num_top)
        rows_R = np.flatnonzero(labels_BT.reshape(-1) != IGNORE)
        if not len(rows_R):
            return None
        moved_R = move(torch.from_numpy(rows_R), policy.device)
        return TopTokens(moved_R, rows_R, ids_RK, log_probs_RK, self.beta)
