"""A save that goes on beside the training: numbers are copied into host memory, and a thread writes the copy.

Steps wait for the copy alone. Threads take part in no collective: that all ranks have written is agreed on by the ranks
themselves, between two steps.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from trainer.checkpoint.commit import WrittenFile, attempt
from trainer.checkpoint.shard_file import Fragment

_LOG = logging.getLogger(__name__)


class PendingWrite:
    """Files that are being written; nobody waits for it when the process ends."""

    def __init__(self, write: Callable[[], list[WrittenFile]]) -> None:
        """Begin."""
        self._write = write
        self._found: tuple[list[WrittenFile] | None, Exception | None] = (None, None)
        self._thread = threading.Thread(target=self._run, name="save", daemon=True)
        self._thread.start()

    @property
    def is_done(self) -> bool:
        """Tell whether it is written, or has failed."""
        return not self._thread.is_alive()

    def wait(self) -> tuple[list[WrittenFile] | None, Exception | None]:
        """Return what was written, or the error."""
        self._thread.join()
        return self._found

    def _run(self) -> None:
        self._found = attempt(self._write)


class HostCopies:
    """Copies of a rank's fragments, in memory that is kept from save to save."""

    def __init__(self) -> None:
        """Hold nothing yet."""
        self._flat: dict[torch.dtype, Tensor] = {}

    def take(self, fragments: Sequence[Fragment]) -> list[Fragment]:
        """Return copies, valid until the next call; what is on a GPU arrives before this returns."""
        sizes: dict[torch.dtype, int] = {}
        for fragment in fragments:
            dtype = fragment.values.dtype
            sizes[dtype] = sizes.get(dtype, 0) + fragment.values.numel()
        is_on_gpu = any(fragment.values.is_cuda for fragment in fragments)
        for dtype, size in sizes.items():
            held = self._flat.get(dtype)
            if held is None or held.numel() < size:
                self._flat[dtype] = _pinned(torch.empty(size, dtype=dtype), is_on_gpu)
        begins = dict.fromkeys(sizes, 0)
        copies = []
        for fragment in fragments:
            dtype, count = fragment.values.dtype, fragment.values.numel()
            copy = self._flat[dtype][begins[dtype] : begins[dtype] + count].view(fragment.values.shape)
            copy.copy_(fragment.values.detach(), non_blocking=True)
            begins[dtype] += count
            copies.append(Fragment(fragment.kind, fragment.name, fragment.begin, copy))
        if is_on_gpu:
            torch.cuda.synchronize()
        return copies


def _pinned(held: Tensor, is_on_gpu: bool) -> Tensor:
    """Pin memory that a GPU copies into, at its own size: torch rounds pinned memory up to a power of two."""
    if is_on_gpu and held.numel():
        num_bytes = held.numel() * held.element_size()
        runtime: Any = torch.cuda
        code = int(runtime.cudart().cudaHostRegister(held.data_ptr(), num_bytes, 0))
        if code:
            _LOG.warning(
                "Host memory for saves could not be pinned (CUDA error %d): copies are slower.", code
            )
    return held
