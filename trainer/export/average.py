"""The mean of several models, one tensor of each at a time: no GPU, and never a whole model in memory.

Source: the mean of the last checkpoints of one run (LAWA, Kaddour 2022, arXiv:2209.14981; SWA, Izmailov et al. 2018,
arXiv:1803.05407). An exponential average during the run would cost every rank another copy of its weights; checkpoints
are there already.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from trainer.errors import CheckpointError


def averaged(streams: Sequence[Iterator[tuple[str, Tensor]]]) -> Iterator[tuple[str, Tensor]]:
    """Yield the mean of each tensor in the first one's dtype, summed in float64; whole numbers are the first one's.

    Args:
        streams: (name, whole tensor) in the same order, with adapters added in: the means of A and of B are not the
            factors of the mean of B A.
    Raises:
        CheckpointError: They are of different models.
    """
    for tensors in zip(*streams, strict=True):
        (name, first), others = tensors[0], tensors[1:]
        if any(other != name or tensor.shape != first.shape for other, tensor in others):
            raise CheckpointError(
                f"Checkpoints must hold the same tensors for their mean, but {name} is another one in some of them. "
                "Set export.average=1."
            )
        if not first.is_floating_point():
            yield name, first
            continue
        total = first.double()
        for _, tensor in others:
            total += tensor.double()
        yield name, (total / len(tensors)).to(first.dtype)
