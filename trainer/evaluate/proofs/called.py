"""A pass of a model in a proof: what is done before it, and the sentence that one ends with that cannot be made."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch

from trainer.dist.mesh import Mesh
from trainer.errors import SelfCheckError

BeforePass = Callable[[int], None]
"""Called by every rank before a pass of the model, with its tokens; a backward pass counts as two more."""


def at_once(work: int) -> None:
    """Do nothing before a pass."""


def anywhere(mesh: Mesh, is_so: bool) -> bool:
    """Tell whether something is so on any rank. Collective: every rank."""
    return mesh.sum([float(is_so)])[0] > 0


@contextlib.contextmanager
def called(
    whose: str, fix: str = "Name another model.path: this architecture is not supported yet."
) -> Iterator[None]:
    """Turn what a call of a model raises into a sentence; lack of memory stays what it is.

    Raises:
        SelfCheckError: The model cannot be called so.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, TypeError, ValueError, KeyError, IndexError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise SelfCheckError(
            f"{whose} must run on token ids and return logits, but ends with {type(error).__name__} instead: {reason}. "
            f"{fix}"
        ) from error
