"""An engine for a model that is only asked: whole on every rank, or spread over them as ZeRO-3 spreads parameters."""

from __future__ import annotations

from typing import Any

from torch import nn

from trainer.engine.engine import Engine, undivided
from trainer.engine.initialize import gather_whole, import_parts


def frozen_engine(model: nn.Module, ds_config: dict[str, Any] | None) -> Engine:
    """Return the engine of a model without gradients. Collective: every rank.

    Args:
        ds_config: DeepSpeed's configuration at stage 3; None: all of the model is on each rank.
    """
    model.requires_grad_(False)
    if ds_config is None:
        return undivided(model)
    import deepspeed

    import_parts()
    gather_whole(model)
    engine, *_ = deepspeed.initialize(model=model, config=ds_config, dist_init_required=False)
    return Engine(engine, 3)
