"""The cross-entropy of sources without preferences beside a loss of preferences.

Shapes: G segments, D documents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from trainer.data.pack.collate import MicroBatch
from trainer.data.types import Bools
from trainer.engine.model_inputs import move
from trainer.metrics.mean import Mean
from trainer.mix.loader import StepBatch
from trainer.objective.contract import Part, Sums

TARGETS = "targets"


class OtherSources:
    """Learns documents, divided by their own tokens of the step."""

    def __init__(self, names: Sequence[str], others: Sequence[str], weight: float) -> None:
        """Take the names of all sources, in their order, those without preferences, and what theirs weighs."""
        self._names, self._others, self._weight = tuple(names), tuple(others), weight

    @property
    def sum_names(self) -> tuple[str, ...]:
        """Return the sum of losses of each source."""
        return tuple(f"nll/{name}" for name in self._others)

    @property
    def means(self) -> tuple[Mean, ...]:
        """Return the loss of each source."""
        return tuple(Mean(f"loss/{name}", (f"nll/{name}",), (f"{TARGETS}/{name}",)) for name in self._others)

    @property
    def added(self) -> tuple[tuple[float, Mean], ...]:
        """Return their part of what is minimised: the weight, and the mean over all their tokens."""
        if not self._others or not self._weight:
            return ()
        return ((self._weight, Mean("text", self.sum_names, (TARGETS,))),)

    def counts(self, batch: StepBatch) -> Mapping[str, float]:
        """Return the supervised tokens of the step, by source and together."""
        by_source = {f"{TARGETS}/{name}": batch.num_targets_by_source[name] for name in self._others}
        return by_source | {TARGETS: sum(by_source.values())}

    def parts(self, micro: MicroBatch, sums_G: Tensor, is_document_G: Bools, sums: Sums) -> list[Part]:
        """Take their loss; a part only where there are documents.

        Args:
            sums_G: Of log-probabilities, by segment, with a gradient.
        """
        at_D = np.flatnonzero(is_document_G)
        if not len(at_D):
            return []
        losses_D = -sums_G[move(torch.from_numpy(at_D), sums_G.device)]
        pack_D = micro.cu_seq_lens[:-1][at_D] // micro.tokens_BT.shape[1]
        names_D = [f"nll/{self._names[micro.source_B[pack]]}" for pack in pack_D.tolist()]
        sums.add_rows(names_D, losses_D.detach())
        return [Part(self._weight * losses_D.sum(), TARGETS)]
