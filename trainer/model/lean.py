"""Import transformers' models without what only models of other kinds need."""

from __future__ import annotations


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
