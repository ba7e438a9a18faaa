"""The sizes of a loaded model that its MFU is worked out from."""

from __future__ import annotations

import logging
from typing import Any

from trainer.metrics.flops import ModelShape
from trainer.model.experts import count_weights

_LOG = logging.getLogger(__name__)


def model_shape(model: Any, num_params: int) -> ModelShape | None:
    """Count a loaded model; None, and a line in the log, where its configuration does not say the sizes of attention.

    Heads whose values are narrower than their keys count with the mean of both: a product with each.
    """
    text = model.config.get_text_config()
    num_layers, num_heads = (getattr(text, key, None) for key in ("num_hidden_layers", "num_attention_heads"))
    head_dim = getattr(text, "head_dim", None)
    if not head_dim and num_heads:
        head_dim = getattr(text, "hidden_size", 0) // num_heads
    keys: list[Any] = [
        getattr(text, key, None) for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    ]
    if all(keys):
        head_dim = sum(keys) / 2
    if not (num_layers and num_heads and head_dim):
        _LOG.info("MFU is not reported: the configuration of %s has no sizes of attention.", text.model_type)
        return None
    counts = count_weights(model)
    return ModelShape(counts.num_matmul, num_layers, int(num_heads * head_dim), num_params)
