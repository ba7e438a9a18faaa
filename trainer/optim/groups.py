"""Split parameters into decay groups."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch


def decay_groups(
    named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
    weight_decay: float,
    decay_embeddings: bool,
    embedding_ids: set[int],
) -> list[dict[str, Any]]:
    """Return a group with weight decay (matrices) and one without (norms, biases, embeddings).

    Args:
        embedding_ids: `id()` of the embedding parameters; tied heads share them.
    Shapes: under ZeRO-3 a parameter's own shape is empty, so `ds_shape` is asked first.
    """
    decayed: list[torch.nn.Parameter] = []
    plain: list[torch.nn.Parameter] = []
    for _, parameter in named_parameters:
        if not parameter.requires_grad:
            continue
        num_dims = len(getattr(parameter, "ds_shape", parameter.shape))
        is_embedding = id(parameter) in embedding_ids
        decays = num_dims >= 2 and (decay_embeddings or not is_embedding)
        (decayed if decays else plain).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay, "name": "decay"},
        {"params": plain, "weight_decay": 0.0, "name": "no_decay"},
    ]
    return [group for group in groups if group["params"]]
