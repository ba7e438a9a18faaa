"""Import transformers' models without what only models of other kinds need."""

from __future__ import annotations

from typing import Any


def import_models() -> None:
    """Import what all models of transformers share, without scipy.

    Its losses of object detection import scipy.optimize where scipy is installed (lm-eval brings it): 1.5 s of each
    rank's start, and hundreds of files from a shared disk.
    Source: `python -X importtime -m trainer train`, transformers 5.24.
    """
    import transformers.utils

    asked = transformers.utils.is_scipy_available
    transformers.utils.is_scipy_available = lambda: False
    try:
        import transformers.modeling_utils
    finally:
        transformers.utils.is_scipy_available = asked


def causal_class(hf_config: Any) -> Any:
    """Return the class that a configuration is loaded as; None for one that transformers has no causal class of."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    import_models()
    known = type(hf_config) in MODEL_FOR_CAUSAL_LM_MAPPING
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(hf_config)] if known else None
