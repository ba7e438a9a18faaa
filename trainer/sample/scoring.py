"""Scores of texts by a reward model, texts of one length together, so that nothing is padded."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainer.sample.scored_rows import RowToScore


def score_rows(model: Any, rows: Sequence[RowToScore], size: int) -> list[list[float]]:
    """Score the answers of all rows, the product for the score in float32; one without tokens has NaN.

    Args:
        size: Texts that go through the model at once.
    """
    texts = [
        (tokens, row, place)
        for row, one in enumerate(rows)
        for place, tokens in enumerate(one.tokens_A)
        if tokens
    ]
    texts.sort(key=lambda text: len(text[0]))
    found = [[math.nan] * len(row.tokens_A) for row in rows]
    start = 0
    with torch.no_grad(), _exact_head(model):
        while start < len(texts):
            stop = start + 1
            while stop < min(start + max(size, 1), len(texts)) and len(texts[stop][0]) == len(
                texts[start][0]
            ):
                stop += 1
            ids = torch.tensor([tokens for tokens, _, _ in texts[start:stop]], device=model.device)
            scores = model(input_ids=ids, use_cache=False).logits[:, 0].double().tolist()
            for (_, row, place), score in zip(texts[start:stop], scores, strict=True):
                found[row][place] = score
            start = stop
    return found


@contextlib.contextmanager
def _exact_head(model: nn.Module) -> Iterator[None]:
    """Let the layer that scores compute in float32: what bf16 rounds a score to has eight bits, and ties."""

    def product(layer: nn.Linear, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        bias = None if layer.bias is None else layer.bias.float()
        return nn.functional.linear(inputs[0].float(), layer.weight.float(), bias)

    heads = [one for one in model.modules() if isinstance(one, nn.Linear) and one.out_features == 1]
    hooks = [head.register_forward_hook(product) for head in heads]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
