"""A stream for what travels between ranks, and the two exchanges of a flat tensor whose parts ranks own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as torch_dist
from torch import Tensor


class Lane:
    """A stream for what travels between ranks; none on a CPU."""

    def __init__(self, device: torch.device, is_own: bool) -> None:
        make: Any = torch.cuda.Stream
        self._stream = make(device) if device.type == "cuda" and is_own else None

    @contextlib.contextmanager
    def after_all(self) -> Iterator[None]:
        """Run what is inside here, after what was asked of the GPU so far."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            yield

    def mark(self) -> Any:
        """Return the end of what is here so far."""
        return self._stream.record_event() if self._stream is not None else None

    def wait(self, mark: Any) -> None:
        """Let what is asked of the GPU from now on come after a mark."""
        if mark is not None:
            torch.cuda.current_stream().wait_event(mark)

    def join(self) -> None:
        """Let what is asked of the GPU from now on come after all that is here."""
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)


def scatter_sum(part: Tensor, whole: Tensor, group: Any) -> None:
    """Fill this rank's part of the sum over ranks. Collective."""
    if whole.device.type == "cuda":
        torch_dist.reduce_scatter_tensor(part, whole, group=group)
        return
    torch_dist.all_reduce(whole, group=group)  # gloo has no other
    part.copy_(whole.narrow(0, torch_dist.get_rank(group=group) * part.numel(), part.numel()))


def gather_parts(whole: Tensor, part: Tensor, group: Any) -> None:
    """Fill a flat tensor whose part of this rank is there. Collective."""
    torch_dist.all_gather_into_tensor(
        whole, part if whole.device.type == "cuda" else part.clone(), group=group
    )
