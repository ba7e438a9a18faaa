"""A GPU that ran out of memory, as a sentence with what to change."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import torch

from trainer.errors import TopologyError

_TRIED = re.compile(r"Tried to allocate ([\d.]+ \w+)")


@contextlib.contextmanager
def shortage_explained(key: str, micro_batch_size: int, checkpoint_layers: int | None) -> Iterator[None]:
    """Turn an out-of-memory error of the block into one that a person can mend.

    Args:
        key: That of the micro-batch.
        micro_batch_size: Packs of a rank's micro-batch.
        checkpoint_layers: As `model.checkpoint_layers`.
    Raises:
        TopologyError: Memory ran out. Trying the same again would end the same, so a job must not requeue itself.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        tried = _TRIED.search(str(error))
        asked = f" when {tried.group(1)} more were asked for" if tried else ""
        fixes = ["model.checkpoint_layers=-1"] if checkpoint_layers != -1 else []
        fixes += [f"{key}={micro_batch_size // 2}"] if micro_batch_size > 1 else []
        fixes += ["a higher zero.stage", "more GPUs"]
        raise TopologyError(
            f"The memory of a GPU must hold a step, but ran out{asked}. Set {', or '.join(fixes)}; `palimpsest plan` "
            "says what fits. Another program on the GPU (nvidia-smi) counts as well."
        ) from error
