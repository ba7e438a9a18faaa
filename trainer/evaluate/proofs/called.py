"""What a model that cannot be called as this trainer calls it ends with: a sentence."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from trainer.errors import SelfCheckError


@contextlib.contextmanager
def called(whose: str, fix: str = "This architecture is not supported yet.") -> Iterator[None]:
    """Turn what a call of a model raises into a sentence; lack of memory stays what it is.

    Raises:
        SelfCheckError: The model cannot be called so.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, TypeError, ValueError, KeyError, IndexError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise SelfCheckError(
            f"{whose} must run on token ids and return logits, but ends with {type(error).__name__} instead: {reason}. "
            f"{fix}"
        ) from error
