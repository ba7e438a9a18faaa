"""A frozen model that is asked in every step: another one beside it, or the trained one with its adapter off.

Shapes: R supervised positions of a micro-batch, K most likely tokens.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from trainer.data.pack.collate import IGNORE, MicroBatch
from trainer.data.pack.refs import PackRef
from trainer.engine.model_inputs import move
from trainer.engine.policy import Policy
from trainer.model.head.comparison import PLAIN, Comparison
from trainer.model.head.divergence import TopTokens
from trainer.model.tune.adapters import adapter_off


@dataclass(frozen=True, slots=True)
class LiveTeacher:
    """Asks a frozen model with one more forward pass. Implements Teacher."""

    beta: float
    num_top: int
    sources: frozenset[int]
    """Numbers of the sources that it is asked about."""
    how: Comparison | None = None
    """What is to be compared; None: the plain forward KL, with the rest's mass as 1 minus the sum."""
    frozen: Policy | None = None
    """Who is asked; None: the base, as the trained model with its adapter off."""

    def attach(self, micro: MicroBatch, refs: Sequence[PackRef]) -> None:
        """Read nothing."""

    def top_tokens(self, policy: Policy, micro: MicroBatch) -> TopTokens | None:
        """Ask about this micro-batch."""
        labels_BT = micro.labels_BT.copy()
        labels_BT[[row for row, source in enumerate(micro.source_B) if source not in self.sources]] = IGNORE
        with self._asking(policy) as asked:
            wanted = dataclasses.replace(micro, labels_BT=labels_BT)
            ids_RK, log_probs = asked.top(wanted, self.num_top, self.how)
        rows_R = np.flatnonzero(labels_BT.reshape(-1) != IGNORE)
        if not len(rows_R):
            return None
        moved_R = move(torch.from_numpy(rows_R), policy.device)
        num_top = ids_RK.shape[1]
        rest_R = None if self.how is None else log_probs[:, num_top]
        how = self.how or PLAIN
        return TopTokens(moved_R, rows_R, ids_RK, log_probs[:, :num_top], self.beta, how, rest_R)

    @contextlib.contextmanager
    def _asking(self, policy: Policy) -> Iterator[Policy]:
        asked = policy if self.frozen is None else self.frozen
        off = adapter_off(policy.module) if self.frozen is None else contextlib.nullcontext()
        with asked.evaluating(), off:
            yield asked
