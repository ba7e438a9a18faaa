"""Answers that share a prompt in flash attention: its keys and values are put before those of each answer.

Queries are as they are; the kernel is given more keys than queries a segment, and lets the last query see all of them,
each one before it one less. In packs a prompt stands once, so its rows get a gradient from every answer: their own is
written first, then those of the second answers are added, then of the third, each row at most once at a time. So the
order of sums is fixed and no kernel adds up in any other.

Shapes: N rows of the flattened batch, M keys after the prompts are put in, S segments, C copies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainer.config.check_sharing import KEY
from trainer.model.around_attention import AttentionCall

Numbers = npt.NDArray[Any]


@dataclass(slots=True)
class SharedPrompts:
    """Which keys each segment sees, for one pass through a model: something that is done around attention."""

    rows_M: Tensor
    """The row of each key."""
    own_N: Tensor
    """Where each row's own key stands among them."""
    copies: list[tuple[Tensor, Tensor]]
    """Rows [C] of prompts and where their keys stand again: of all units' second answers, of the third, and so on."""
    boundaries: Tensor
    """Where the keys of each segment begin, and the last ends: int32 [S + 1]."""
    most: int
    """Keys of the segment that has most."""
    num_calls: int = 0

    def attend(self, call: AttentionCall) -> Any:
        """Call attention with all keys of each segment. Takes one row of all packs, [1, heads, N, size]."""
        self.num_calls += 1
        call.options |= {"cu_seq_lens_k": self.boundaries, "max_length_k": self.most}
        call.key, call.value = self.with_prompts(call.key), self.with_prompts(call.value)
        return call.answered()

    def with_prompts(self, states: Tensor) -> Tensor:
        """Return keys or values [1, heads, M, size] of those of the rows [1, heads, N, size]. Differentiable."""
        # Row by row in memory, as the kernel reads them.
        found: Tensor = _WithPrompts.apply(states.transpose(1, 2), self)  # type: ignore[no-untyped-call]
        return found.transpose(1, 2)

    def refusal(self, model_type: str, num_missed: int, num_layers: int) -> str:
        """Return the sentence about a model of which so many layers never came here."""
        return (
            f"`{KEY}` must be false for {model_type}, but is true instead: the attention of {num_missed} of its "
            f"{num_layers} layers cannot be told which prompt an answer sees. Set {KEY}=false."
        )


class _WithPrompts(torch.autograd.Function):
    """Rows [1, N, ...] copied to their places [1, M, ...]."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, shared: SharedPrompts) -> Tensor:
        ctx.shared = shared
        return rows.index_select(1, shared.rows_M)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        shared: SharedPrompts = ctx.shared
        (grad,) = grad_outputs
        total = grad.index_select(1, shared.own_N)
        for rows_C, places_C in shared.copies:
            total.index_add_(1, rows_C, grad.index_select(1, places_C))
        return total, None


def shared_prompts(
    boundaries: Numbers, prefixes_S: Numbers, firsts_S: Numbers, moved: Callable[[Numbers], Tensor]
) -> SharedPrompts:
    """Lay out the keys of packs in which answers share prompts.

    Args:
        boundaries: Where each segment begins, and the last ends: int32 [S + 1].
        prefixes_S: How many rows of the first segment of its unit each segment sees before its own.
        firsts_S: That segment.
        moved: Copies an array to the device.
    """
    starts_S = boundaries[:-1].astype(np.int64)
    total_S = np.diff(boundaries) + prefixes_S
    ends_S = np.cumsum(total_S)
    segment_M = np.repeat(np.arange(len(total_S)), total_S)
    place_M = np.arange(len(segment_M)) - (ends_S - total_S)[segment_M]
    prefix_M = prefixes_S[segment_M]
    is_copy_M = place_M < prefix_M
    begin_M = np.where(is_copy_M, starts_S[firsts_S][segment_M], (starts_S - prefixes_S)[segment_M])
    rows_M = begin_M + place_M
    number_M = np.where(is_copy_M, segment_M - firsts_S[segment_M], 0)
    copies = []
    for number in np.unique(number_M[is_copy_M]).tolist():
        places_C = np.flatnonzero(number_M == number)
        copies.append((moved(rows_M[places_C]), moved(places_C)))
    return SharedPrompts(
        moved(rows_M),
        moved(np.flatnonzero(~is_copy_M)),
        copies,
        moved(np.concatenate([[0], ends_S]).astype(np.int32)),
        int(total_S.max()),
    )
