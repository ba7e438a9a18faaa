"""The most likely next tokens at supervised positions.

Shapes: N tokens, Q supervised positions, K most likely tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.model.head.ask import IGNORE, HeadAsk, Output

ROWS_AT_ONCE = 512
"""Rows of float32 logits at once: 512 x 128k x 4 bytes is 0.26 GB."""


@dataclass(frozen=True, slots=True)
class Top(HeadAsk[tuple[Tensor, Tensor]]):
    """Ask for (ids_QK, log_probs_QK) of the most likely next tokens, int32 and float32; K at most the vocabulary."""

    labels_N: Tensor
    num_top: int

    def answer(self, hidden: Tensor, output: Output) -> tuple[Tensor, Tensor]:
        """Take them, some rows at a time."""
        hidden_QH = hidden.reshape(-1, hidden.shape[-1])[self.labels_N != IGNORE]
        shape = (hidden_QH.shape[0], min(self.num_top, output.weight_VH.shape[0]))
        ids_QK = torch.empty(shape, dtype=torch.int32, device=hidden.device)
        log_probs_QK = torch.empty(shape, dtype=torch.float32, device=hidden.device)
        for start in range(0, len(hidden_QH), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            log_probs = torch.log_softmax(output.logits(hidden_QH[part]), dim=-1, dtype=torch.float32)
            log_probs_QK[part], ids_QK[part] = log_probs.topk(shape[1], dim=-1)
        return ids_QK, log_probs_QK
