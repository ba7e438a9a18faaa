"""A save that goes on beside the training: numbers are copied into host memory, and a thread writes the copy.

Steps wait for the copy alone. Threads take part in no collective: that all ranks have written is agreed on by the ranks
themselves, between two steps.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
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
        self._reserving: threading.Thread | None = None
        self.is_reserved = False

    def reserve(self, fragments: Sequence[Fragment]) -> None:
        """Get memory for copies of these beside the training: to pin 22 GB of it took 9 s, to fill it 0.4 s (H200)."""
        self.is_reserved = True
        self._reserving = threading.Thread(
            target=self._reserve, args=(_sizes(fragments), _device(fragments)), name="reserve", daemon=True
        )
        self._reserving.start()

    def take(self, fragments: Sequence[Fragment]) -> list[Fragment]:
        """Return copies, valid until the next call; what is on a GPU arrives before this returns."""
        if self._reserving is not None:
            self._reserving.join()
            self._reserving = None
        device, sizes = _device(fragments), _sizes(fragments)
        self._reserve(sizes, device)
        begins = dict.fromkeys(sizes, 0)
        copies = []
        for fragment in fragments:
            dtype, count = fragment.values.dtype, fragment.values.numel()
            copy = self._flat[dtype][begins[dtype] : begins[dtype] + count].view(fragment.values.shape)
            copy.copy_(fragment.values.detach(), non_blocking=True)
            begins[dtype] += count
            copies.append(Fragment(fragment.kind, fragment.name, fragment.begin, copy))
        if device is not None:
            torch.cuda.synchronize()
        return copies

    def _reserve(self, sizes: dict[torch.dtype, int], device: torch.device | None) -> None:
        """Get what is not held yet; pinned, where a GPU will copy into it."""
        for dtype, size in sizes.items():
            held = self._flat.get(dtype)
            if held is None or held.numel() < size:
                # numpy asks for huge pages, of which few are to be pinned.
                flat = torch.from_numpy(np.empty(size * dtype.itemsize, np.uint8)).view(dtype)
                if device is not None:
                    _pin(flat, device)
                self._flat[dtype] = flat


def _sizes(fragments: Sequence[Fragment]) -> dict[torch.dtype, int]:
    """Return the elements of each dtype."""
    sizes: dict[torch.dtype, int] = {}
    for fragment in fragments:
        dtype = fragment.values.dtype
        sizes[dtype] = sizes.get(dtype, 0) + fragment.values.numel()
    return sizes


def _device(fragments: Sequence[Fragment]) -> torch.device | None:
    """Return the GPU that any of these is on."""
    return next((one.values.device for one in fragments if one.values.is_cuda), None)


def _pin(held: Tensor, device: torch.device) -> None:
    """Pin memory that a GPU copies into, at its own size: torch rounds pinned memory up to a power of two."""
    if not held.numel():
        return
    torch.cuda.set_device(device)  # another thread begins at the first GPU, which may be another rank's
    runtime: Any = torch.cuda
    code = int(runtime.cudart().cudaHostRegister(held.data_ptr(), held.nbytes, 0))
    if code:
        _LOG.warning("Host memory for saves could not be pinned (CUDA error %d): copies are slower.", code)
