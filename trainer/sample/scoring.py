"""Scores of texts by a reward model, texts of one length together, so that nothing is padded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from trainer.sample.scored_rows import RowToScore


def score_rows(model: Any, rows: Sequence[RowToScore], size: int) -> list[list[float]]:
    """Score the answers of all rows.

    Args:
        size: Texts that go through the model at once.
    """
    texts = [
        (tokens, row, place) for row, one in enumerate(rows) for place, tokens in enumerate(one.tokens_A)
    ]
    texts.sort(key=lambda text: len(text[0]))
    found = [[0.0] * len(row.tokens_A) for row in rows]
    start = 0
    while start < len(texts):
        stop = start + 1
        while stop < min(start + max(size, 1), len(texts)) and len(texts[stop][0]) == len(texts[start][0]):
            stop += 1
        ids = torch.tensor([tokens for tokens, _, _ in texts[start:stop]], device=model.device)
        with torch.no_grad():
            scores = model(input_ids=ids, use_cache=False).logits[:, 0].double().tolist()
        for (_, row, place), score in zip(texts[start:stop], scores, strict=True):
            found[row][place] = score
        start = stop
    return found
