"""The sizes of a loaded model that its MFU is worked out from."""

from __future__ import annotations

import logging
from typing import Any

from trainer.metrics.flops import ModelShape
from trainer.model.experts import count_weights
from trainer.model.widths import attention_widths

_LOG = logging.getLogger(__name__)


def model_shape(model: Any, num_params: int) -> ModelShape | None:
    """Count a loaded model; None, and a line in the log, where its configuration does not say the sizes of attention.

    Heads whose values are narrower than their keys count with the mean of both: a product with each.
    """
    text = model.config.get_text_config()
    num_layers, widths = getattr(text, "num_hidden_layers", None), attention_widths(text)
    keys: list[Any] = [
        getattr(text, key, None) for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    ]
    if not num_layers or widths is None:
        _LOG.info("MFU is not reported: the configuration of %s has no sizes of attention.", text.model_type)
        return None
    width = text.num_attention_heads * sum(keys) / 2 if all(keys) else widths[0]
    return ModelShape(count_weights(model).num_matmul, num_layers, int(width), num_params)
