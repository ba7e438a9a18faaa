"""Weights between the base model and a tuned one: base + alpha (tuned - base), one tensor at a time.

Source: WiSE-FT (Wortsman et al. 2022, arXiv:2109.01903).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor

from trainer.errors import ModelError
from trainer.model.load import tensor_reader, weight_files


def blended(stream: Iterable[tuple[str, Tensor]], source: str, alpha: float) -> Iterator[tuple[str, Tensor]]:
    """Yield each tuned tensor moved back to the base of a local folder, in the tuned one's dtype.

    Args:
        alpha: 1 is the tuned model, 0 the base.
    Raises:
        ModelError: The base has no safetensors files here, or is of another architecture or vocabulary.
    """
    files = weight_files(source)
    if not files:
        raise ModelError(
            f"`model.path` must be a folder with safetensors files for an interpolation, but {source} has none "
            "instead. Download the base model and give its folder."
        )
    with tensor_reader() as read:
        for name, tuned in stream:
            file = files.get(name)
            if file is None:
                raise ModelError(
                    f"The base model {source} must have the tensors of the tuned one for an interpolation, but has no "
                    f"{name}: another architecture. Give the base that the run began with as model.path."
                )
            base = read(file, name)
            if base.shape != tuned.shape:
                raise ModelError(
                    f"The base model {source} must have the tuned one's shapes for an interpolation, but {name} is "
                    f"{list(base.shape)} there and {list(tuned.shape)} here: another size or vocabulary. Give the "
                    "base that the run began with as model.path."
                )
            wide = base.float()
            yield name, (wide + alpha * (tuned.float() - wide)).to(tuned.dtype)
