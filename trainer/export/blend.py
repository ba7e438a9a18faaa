"""Weights between the base model and a tuned one: base + alpha (tuned - base), one tensor at a time.

Source: WiSE-FT (Wortsman et al. 2022, arXiv:2109.01903).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor

from trainer.errors import ModelError
from trainer.model.base_files import BaseFiles


def blended(
    stream: Iterable[tuple[str, Tensor]], base: BaseFiles, alpha: float
) -> Iterator[tuple[str, Tensor]]:
    """Yield each tuned tensor moved back to the base, in the tuned one's dtype.

    Args:
        alpha: 1 is the tuned model, 0 the base.
    Raises:
        ModelError: The base has no safetensors files here, or is of another architecture or vocabulary.
    """
    source, known = base.source, set(base.names)
    if not known:
        raise ModelError(
            f"`model.path` must be a folder with safetensors files for an interpolation, but {source} has none "
            "instead. Download the base model and give its folder."
        )
    with base.reader() as read:
        for name, tuned in stream:
            if name not in known:
                raise ModelError(
                    f"The base model {source} must have the tensors of the tuned one for an interpolation, but has no "
                    f"{name}: another architecture. Give the base that the run began with as model.path."
                )
            before = read(name)
            if before.shape != tuned.shape:
                raise ModelError(
                    f"The base model {source} must have the tuned one's shapes for an interpolation, but {name} is "
                    f"{list(before.shape)} there and {list(tuned.shape)} here: another size or vocabulary. Give the "
                    "base that the run began with as model.path."
                )
            wide = before.float()
            yield name, (wide + alpha * (tuned.float() - wide)).to(tuned.dtype)
