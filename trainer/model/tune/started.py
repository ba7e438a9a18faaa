"""An adapter that training goes on with: its tensors by layer, and how they get into a model that was just adapted.

Shapes: R rank, I inputs, O outputs of a layer.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.config.start import start_refused
from trainer.config.tune import TuneConfig
from trainer.errors import ModelError

_PART = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_magnitude_vector)(\.default)?(\.weight)?"
)
_A, _B, _MAGNITUDE = "lora_A", "lora_B", "lora_magnitude_vector"


@dataclass(frozen=True, slots=True)
class StartAdapter:
    """The tensors of an adapter before the first step."""

    place: str
    """Where it was read, for sentences."""
    layers: dict[str, dict[str, Tensor]]
    """By the model's name of a layer: lora_A [R, I], lora_B [O, R], of DoRA lora_magnitude_vector [O]."""

    @property
    def digest(self) -> str:
        """Return the SHA-256 over names, shapes and values in float32."""
        found = hashlib.sha256()
        for module, parts in sorted(self.layers.items()):
            for part, tensor in sorted(parts.items()):
                found.update(json.dumps([module, part, list(tensor.shape)]).encode())
                found.update(tensor.float().contiguous().numpy().tobytes())
        return found.hexdigest()

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Return them by the names that they have in the model."""
        return {
            f"{module}.{part}.default.weight": tensor
            for module, parts in self.layers.items()
            for part, tensor in parts.items()
        }


def start_of(
    place: str, tensors: Iterable[tuple[str, Tensor]], tune: TuneConfig, own_name: Callable[[str], str | None]
) -> StartAdapter:
    """Sort the tensors of an adapter by layer.

    Args:
        tensors: By peft's names or by those of a run.
        tune: With the adapter's own options.
        own_name: Returns the name in the model that trains of a layer of the whole one.
    Raises:
        ModelError: There are others than its description tells of.
    """
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors:
        found = _PART.fullmatch(name)
        if found is None:
            rule = f"factors beside linear layers alone, but holds {name}"
            raise ModelError(
                start_refused(place, rule, "Merge it into its base, and give that as model.path.")
            )
        module = own_name(found["module"]) or found["module"]
        layers.setdefault(module, {})[found["part"]] = tensor
    wanted = {_A, _B, _MAGNITUDE} if tune.dora else {_A, _B}
    for module, parts in layers.items():
        if parts.keys() != wanted:
            kind = "DoRA" if tune.dora else "plain LoRA"
            lacks = ", ".join(sorted(wanted - parts.keys())) or "nothing"
            more = ", ".join(sorted(parts.keys() - wanted)) or "nothing"
            rule = (
                f"{kind} as its adapter_config.json says, but lacks {lacks} and has {more} more of {module}"
            )
            raise ModelError(start_refused(place, rule, "Mend use_dora there, or get the files again."))
        if len(parts[_A]) != tune.r or parts[_B].shape[-1:] != (tune.r,):
            rule = f"of rank {tune.r} as its adapter_config.json says, but A is {list(parts[_A].shape)} of {module}"
            raise ModelError(start_refused(place, rule, "Mend r there, or get the files again."))
        lost = [part for part, tensor in parts.items() if not bool(torch.isfinite(tensor).all())]
        if lost:
            rule = f"of finite numbers, but has others in {lost[0]} of {module}"
            raise ModelError(start_refused(place, rule, "Take an earlier checkpoint of it."))
    return StartAdapter(place, layers)


def check_layers(model: Any, start: StartAdapter, is_linear: Callable[[Any], bool]) -> None:
    """Refuse an adapter whose layers are not those of a model, by name and shape.

    Raises:
        ModelError: Names the first that is not there, or is of another size.
    """
    known = dict(model.named_modules())
    fix = "Give the base that it was trained on as model.path."
    for module, parts in start.layers.items():
        layer = known.get(module)
        if layer is None or not is_linear(layer):
            rule = f"an adapter of this model, but sits on {module}, which is no linear layer of it"
            raise ModelError(start_refused(start.place, rule, fix))
        sizes, own = (layer.in_features, layer.out_features), (parts[_A].shape[1], parts[_B].shape[0])
        if sizes != own:
            rule = (
                f"an adapter of this model, but is for {own[0]} inputs and {own[1]} outputs of {module}, which has "
                f"{sizes[0]} and {sizes[1]}"
            )
            raise ModelError(start_refused(start.place, rule, fix))


def fill_adapter(model: Any, start: StartAdapter) -> None:
    """Give the factors that were put into a model the values to begin with, in place.

    Raises:
        ModelError: A factor of the model has none, or one has no place.
    """
    own = {name: p for name, p in model.named_parameters() if _PART.fullmatch(name) is not None}
    tensors = start.tensors
    if own.keys() != tensors.keys():
        odd = min(own.keys() ^ tensors.keys())
        raise ModelError(
            start_refused(
                start.place, f"what peft puts into this model, but differs in {odd}", "Report this model."
            )
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name].reshape(parameter.shape).to(parameter))
