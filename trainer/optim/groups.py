"""Split parameters into decay groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch


def decay_groups(
    named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
    weight_decay: float,
    decay_embeddings: bool,
    embedding_ids: set[int],
    is_faster: Callable[[str], bool] = lambda name: False,
    faster: float = 1.0,
) -> list[dict[str, Any]]:
    """Return a group with weight decay (matrices) and one without (norms, biases, embeddings).

    Args:
        embedding_ids: `id()` of the embedding parameters; tied heads share them.
        is_faster: Tells by name which parameters have a group of their own (LoRA+), if `faster` is not 1.
        faster: Their learning rate over that of the others; a group's `lr_factor`.
    Shapes: under ZeRO-3 a parameter's own shape is empty, so `ds_shape` is asked first.
    """
    decayed: list[torch.nn.Parameter] = []
    plain: list[torch.nn.Parameter] = []
    quick: list[torch.nn.Parameter] = []
    for name, parameter in named_parameters:
        if not parameter.requires_grad:
            continue
        if faster != 1 and is_faster(name):
            quick.append(parameter)
            continue
        num_dims = len(getattr(parameter, "ds_shape", parameter.shape))
        is_embedding = id(parameter) in embedding_ids
        decays = num_dims >= 2 and (decay_embeddings or not is_embedding)
        (decayed if decays else plain).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay, "name": "decay"},
        {"params": plain, "weight_decay": 0.0, "name": "no_decay"},
        {"params": quick, "weight_decay": weight_decay, "name": "faster", "lr_factor": faster},
    ]
    return [group for group in groups if group["params"]]
