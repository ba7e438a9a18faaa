"""The most likely next tokens at supervised positions.

Shapes: N tokens, Q supervised positions, K most likely tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.model.head.ask import IGNORE, HeadAsk, Output
from trainer.model.head.comparison import Comparison

ROWS_AT_ONCE = 512
"""Rows of float32 logits at once: 512 x 128k x 4 bytes is 0.26 GB."""


@dataclass(frozen=True, slots=True)
class Top(HeadAsk[tuple[Tensor, Tensor]]):
    """Ask for (ids_QK, log_probs_QK) of the most likely next tokens, int32 and float32; K at most the vocabulary.

    With a comparison they are of what it sees, and log_probs_QK1 has the logarithm of the rest's mass behind them.
    """

    labels_N: Tensor
    num_top: int
    how: Comparison | None = None

    def answer(self, hidden: Tensor, output: Output) -> tuple[Tensor, Tensor]:
        """Take them, some rows at a time."""
        hidden_QH = hidden.reshape(-1, hidden.shape[-1])[self.labels_N != IGNORE]
        num_ids = output.weight_VH.shape[0]
        if self.how is not None and self.how.num_ids is not None:
            num_ids = min(num_ids, self.how.num_ids)
        num_rows, num_top = hidden_QH.shape[0], min(self.num_top, num_ids)
        width = num_top + (self.how is not None)
        ids_QK = torch.empty((num_rows, num_top), dtype=torch.int32, device=hidden.device)
        log_probs_QK = torch.empty((num_rows, width), dtype=torch.float32, device=hidden.device)
        for start in range(0, num_rows, ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            logits = output.logits(hidden_QH[part])
            if self.how is None:
                log_probs = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
            else:
                log_probs = torch.log_softmax(self.how.seen(logits.float()), dim=-1)
            found, ids = log_probs.topk(num_top, dim=-1)
            log_probs_QK[part, :num_top], ids_QK[part] = found, ids
            if self.how is not None:
                rest = log_probs.scatter_(1, ids, float("-inf")).logsumexp(dim=-1)
                log_probs_QK[part, num_top] = rest
        return ids_QK, log_probs_QK
