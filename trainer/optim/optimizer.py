"""Build the optimizer. AdamW of torch: fused on a GPU, so nothing is compiled at start."""

from __future__ import annotations

from typing import Any

import torch

from trainer.config.optim import OptimConfig


def build_optimizer(groups: list[dict[str, Any]], optim: OptimConfig, on_gpu: bool) -> torch.optim.Optimizer:
    """Return AdamW over the decay groups."""
    return torch.optim.AdamW(
        groups,
        lr=optim.lr,
        betas=(optim.betas[0], optim.betas[1]),
        eps=optim.eps,
        fused=on_gpu,
    )
