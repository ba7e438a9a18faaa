"""What the base model says of replay while a run trains: read from a reference, or asked with the adapter off.

Shapes: R supervised replay positions of a micro-batch, K most likely tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from trainer.data.pack.collate import IGNORE, MicroBatch
from trainer.dist.group import Group
from trainer.engine.engine import Engine
from trainer.engine.inputs import model_inputs, move
from trainer.model.head.divergence import TopTokens
from trainer.model.tune.adapters import adapter_off


class BaseModel(Protocol):
    """Where a step learns what the base model says of replay: a cache, or the model with its adapter off."""

    def top_tokens(self, engine: Engine, micro: MicroBatch, group: Group, flash: bool) -> TopTokens | None:
        """Return the base's top tokens at the supervised replay of a micro-batch; None if it has none.

        Collective: every rank, for every micro-batch, because one that asks the model runs it:
        `engine.forward(labels=..., num_top=K, ...)` gives ids and log-probabilities at the labels.
        """


@dataclass(frozen=True, slots=True)
class CachedBase:
    """The base model as the loader read it from the reference. Implements BaseModel without asking the model."""

    beta: float

    def top_tokens(self, engine: Engine, micro: MicroBatch, group: Group, flash: bool) -> TopTokens | None:
        """Move what came with the micro-batch to the device."""
        if micro.base is None:
            return None
        rows_R, ids_RK, log_probs_RK = (
            move(torch.from_numpy(array), group.device)
            for array in (micro.base.rows_R, micro.base.ids_RK, micro.base.log_probs_RK)
        )
        return TopTokens(rows_R, micro.base.rows_R, ids_RK, log_probs_RK, self.beta)


@dataclass(frozen=True, slots=True)
class AdapterBase:
    """The base model as the trained one with its adapter off. Implements BaseModel with one more forward pass."""

    beta: float
    num_top: int
    replay: frozenset[int]
    """Numbers of the replay sources."""

    def top_tokens(self, engine: Engine, micro: MicroBatch, group: Group, flash: bool) -> TopTokens | None:
        """Ask the base about this micro-batch."""
        labels_BT = micro.labels_BT.copy()
        labels_BT[[row for row, source in enumerate(micro.source_B) if source not in self.replay]] = IGNORE
        labels = move(torch.from_numpy(labels_BT), group.device)
        with engine.evaluating(), adapter_off(engine.module):
            ids_RK, log_probs_RK = engine.forward(
                labels=labels, num_top=self.num_top, **model_inputs(micro, group.device, flash)
            )
        rows_R = np.flatnonzero(labels_BT.reshape(-1) != IGNORE)
        if not len(rows_R):
            return None
        moved_R = move(torch.from_numpy(rows_R), group.device)
        return TopTokens(moved_R, rows_R, ids_RK, log_probs_RK, self.beta)
