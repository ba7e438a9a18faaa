"""What writing weights in a narrower dtype takes back of an update: small steps round to the base's own values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from trainer.model.base_files import BaseFiles


class Rounding:
    """Counts, of the weights that differ from the base's, those that no longer do once both are rounded."""

    def __init__(self, base: BaseFiles, dtype: torch.dtype) -> None:
        """Take the base, which may have no safetensors files: then nothing is counted."""
        self._base = base
        self._dtype = dtype
        self.num_moved = 0
        self.num_lost = 0

    @property
    def lost_share(self) -> float:
        """Return the share of the moved weights that rounding takes back."""
        return self.num_lost / max(self.num_moved, 1)

    def watch(self, stream: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Yield the same tensors, counted."""
        known = set(self._base.names)
        with self._base.reader() as read:
            for name, tensor in stream:
                if name in known and tensor.is_floating_point():
                    self._count(tensor, read(name))
                yield name, tensor

    def _count(self, tuned: Tensor, base: Tensor) -> None:
        if tuned.shape != base.shape:  # rows were added
            tuned = tuned[: len(base)]
        if tuned.shape != base.shape:
            return
        has_moved = tuned.float() != base.float()
        self.num_moved += int(has_moved.sum())
        self.num_lost += int((has_moved & (tuned.to(self._dtype) == base.to(self._dtype))).sum())
