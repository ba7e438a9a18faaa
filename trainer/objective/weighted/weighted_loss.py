"""Cross-entropy of supervised tokens, each times the weight of its row and turn, divided by the sum of weights.

A weight says how much a token counts against the others of the step: doubling all of them changes nothing. Those of
all ranks and micro-batches are added up from the plan, so nothing is communicated and nothing depends on how packs fall
into micro-batches. Held-out losses stay unweighted, so that runs can be compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from trainer.data.pack.collate import IGNORE, MicroBatch
from trainer.data.pack.refs import PackRef
from trainer.data.rows.weight import WEIGHT
from trainer.engine.model_inputs import move
from trainer.engine.policy import Policy
from trainer.metrics.mean import Mean
from trainer.mix.loader import StepBatch
from trainer.objective.contract import Part, Sums


class WeightedObjective:
    """Weighted next-token cross-entropy by source. Implements Objective.

    Shapes: B packs and S supervised tokens of a micro-batch.
    """

    def __init__(self, names: Sequence[str]) -> None:
        """Take the names of the sources in their order."""
        self._names = tuple(names)

    @property
    def sum_names(self) -> tuple[str, ...]:
        """Return the weighted loss of each source."""
        return tuple(f"nll/{name}" for name in self._names)

    @property
    def means(self) -> tuple[Mean, ...]:
        """Return the weighted mean of losses, in all and by source."""
        by_source = (Mean(f"loss/{name}", (f"nll/{name}",), (f"{WEIGHT}/{name}",)) for name in self._names)
        return (Mean("loss", self.sum_names, (WEIGHT,)), *by_source)

    def counts(self, batch: StepBatch) -> Mapping[str, float]:
        """Return the sum of the weights of all supervised tokens of the step, in all and by source."""
        by_source = batch.value_sums_by_source[WEIGHT]
        return {WEIGHT: batch.value_sums[WEIGHT]} | {
            f"{WEIGHT}/{name}": by_source[name] for name in self._names
        }

    def attach(self, micro: MicroBatch, refs: Sequence[PackRef]) -> None:
        """Read nothing: weights are part of the packs."""

    def begin(self, policy: Policy, batch: StepBatch) -> None:
        """Need nothing of the whole step."""

    def warning(self, record: Mapping[str, float]) -> str | None:
        """Say nothing."""
        return None

    def terms(self, policy: Policy, micro: MicroBatch, sums: Sums) -> Sequence[Part]:
        """Take the weighted losses of a micro-batch."""
        rows_S = np.flatnonzero(micro.labels_BT.reshape(-1) != IGNORE)
        weights_S = micro.values_BT[WEIGHT].reshape(-1)[rows_S]
        losses_S = -move(torch.from_numpy(weights_S), policy.device) * policy.log_probs(micro)
        pack_S = np.repeat(np.arange(len(micro.source_B)), micro.num_targets_B)
        losses_B = torch.zeros(len(micro.source_B), dtype=torch.float64, device=policy.device)
        losses_B.index_add_(0, move(torch.from_numpy(pack_S), policy.device), losses_S.detach().double())
        sums.add_rows([f"nll/{self._names[source]}" for source in micro.source_B], losses_B)
        return [Part(losses_S.sum(), WEIGHT)]
