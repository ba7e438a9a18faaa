"""What a run trained, as whole tensors: an adapter as peft names it, or the base with it added in.

Streams: one tensor of the base at a time. Adding in is peft's own arithmetic, in float32, on one layer at a time.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trainer.errors import ModelError, SelfCheckError
from trainer.model.base_files import BaseFiles
from trainer.model.lean import import_peft
from trainer.model.scorer import WEIGHT as SCORE_WEIGHT
from trainer.model.tune.adapters import ADAPTER
from trainer.model.tune.expert_places import add_experts, expert_places, has_experts
from trainer.model.tune.new_tokens import PEFT_ROWS, ROWS, grown
from trainer.model.tune.prompt import ENCODER
from trainer.model.tune.whole import with_tied_copies

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
FACTORS = re.compile(r"\.(lora_|ia3_)")
"""Tensors that peft adds to a layer."""
PEFT_PREFIX = "base_model.model."
"""What peft puts before the names of the model it wraps."""


def write_adapter(
    stream: Iterable[tuple[str, Tensor]], peft_config: Any, folder: Path, dtype: torch.dtype
) -> int:
    """Write an adapter folder in peft's format; return the number of tensors.

    Raises:
        ModelError: There is nothing in it.
        SelfCheckError: The file does not hold what was meant.
    """
    trained = with_tied_copies(dict(stream), peft_config)
    tensors = {_peft_name(name): tensor.to(dtype).contiguous().clone() for name, tensor in trained.items()}
    if not tensors:
        raise ModelError("The adapter must hold trained tensors, but the checkpoint has none. Train again.")
    save_file(tensors, str(folder / WEIGHTS), metadata={"format": "pt"})
    written = load_file(str(folder / WEIGHTS))
    wrong = [name for name, tensor in tensors.items() if not torch.equal(written[name], tensor)]
    if wrong:
        raise SelfCheckError(
            f"The exported tensor {wrong[0]} must equal the trained one, but differs in {folder / WEIGHTS}. The disk "
            "or memory is faulty; export again elsewhere."
        )
    text = describe_adapter(peft_config, peft_config.base_model_name_or_path)
    (folder / CONFIG).write_text(text, encoding="utf-8")
    return len(tensors)


def _peft_name(name: str) -> str:
    if name == f"virtual.{ENCODER}":
        return "prompt_embeddings"
    if name.endswith(f".{ROWS}"):
        return f"{PEFT_PREFIX}{name.removesuffix(ROWS)}{PEFT_ROWS}"
    bare = name.removesuffix(".weight") if ".lora_magnitude_vector." in name else name
    return PEFT_PREFIX + bare.replace(f".{ADAPTER}.", ".").removesuffix(f".{ADAPTER}")


def describe_adapter(peft_config: Any, source: str) -> str:
    """Return adapter_config.json."""
    described = peft_config.to_dict() | {"inference_mode": True, "base_model_name_or_path": source}
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in described.items()}
    return json.dumps(plain, indent=2, default=str) + "\n"


def read_adapter(folder: Path) -> Any:
    """Return peft's description of the adapter of a run or an export; None if it has none."""
    import_peft()
    from peft import PeftConfig

    return PeftConfig.from_pretrained(str(folder)) if (folder / CONFIG).is_file() else None


def with_base(
    stream: Iterable[tuple[str, Tensor]], base: BaseFiles, peft_config: Any
) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of the base with what was trained in its place, or added in; float32 where it was.

    Args:
        stream: What trained, in the model's names.
        peft_config: The adapter; None if whole parameters trained.
    Raises:
        ModelError: The base has no files here, or a trained tensor has no place in them.
    """
    if not base.names:
        raise ModelError(
            f"`model.path` must be a folder with safetensors files to add an adapter to, but {base.source} has none "
            "instead. Download the base model and give its folder."
        )
    if base.packing is not None:
        raise ModelError(
            "`model.path` must be in full precision to write what trained into it, but the weights of "
            f"{base.source} are packed instead ({base.packing}). Export the adapter alone, or train from "
            "a folder in full precision."
        )
    trained = dict(stream)
    adapter = {name: trained.pop(name) for name in list(trained) if FACTORS.search(name)}
    parts = _by_module(adapter)
    places = expert_places(base.source, peft_config) if has_experts(peft_config, adapter) else {}
    with base.reader() as read:
        for name in base.names:
            rows = trained.pop(f"{name.removesuffix('weight')}{ROWS}", None)
            place = places.get(name)
            part = parts.pop(name.removesuffix(".weight") if place is None else place.module, None)
            if part is not None and place is not None:
                yield name, add_experts(read(name), part, place, peft_config)
            elif part is not None:
                yield name, _add_in(name, read(name), part, peft_config)
            elif rows is not None:
                first_id = min(peft_config.trainable_token_indices[name.removesuffix(".weight")])
                yield name, grown(read(name), rows, first_id)
            elif name in trained:
                yield name, trained.pop(name)
            else:
                yield name, read(name)
    if SCORE_WEIGHT in trained:  # of a reward model whose base had no such layer
        yield SCORE_WEIGHT, trained.pop(SCORE_WEIGHT)
    lost = sorted([*parts, *trained])
    if lost:
        raise ModelError(
            f"The base model {base.source} must have the tensors that were trained, but has no {lost[0]}: another "
            "architecture, or parameters in several matrices. Export the adapter alone."
        )


def for_whole(
    trained: Iterable[tuple[str, Tensor]], peft_config: Any, base: BaseFiles
) -> tuple[Iterable[tuple[str, Tensor]], Any]:
    """Return an adapter of a language part under the names of the whole base.

    They are full names, so that nothing of what sees is meant, and peft refuses a model of another class.
    """
    if not base.is_multimodal:
        return trained, peft_config
    described, trained = copy.deepcopy(peft_config), list(trained)
    if getattr(described, "target_modules", None):
        described.target_modules = _whole_targets(_by_module(dict(trained)), described)
    for key in ("target_modules", "target_parameters", "modules_to_save", "feedforward_modules"):
        names = getattr(described, key, None)
        if names and not isinstance(names, str):
            setattr(described, key, sorted(map(base.whole_name, names)))
    rows = getattr(described, "trainable_token_indices", None)
    if rows:
        described.trainable_token_indices = {base.whole_name(name): ids for name, ids in rows.items()}
    return ((base.whole_name(name), tensor) for name, tensor in trained), described


def _whole_targets(modules: Iterable[str], peft_config: Any) -> list[str]:
    """Return the layers with an adapter by full name: of 20 or more peft keeps the last words alone."""
    parameters = set(getattr(peft_config, "target_parameters", None) or ())
    words = tuple(f".{word}" for word in peft_config.target_modules)
    return [m for m in modules if f".{m}".endswith(words) and f"{m}.weight" not in parameters]


def _by_module(trained: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return the adapter's tensors by the module they belong to, named within it."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in trained.items():
        module, _, rest = FACTORS.sub(r"\0\1", name, count=1).partition("\0")
        parts.setdefault(module, {})[rest] = tensor
    return parts


def _add_in(name: str, weight: Tensor, part: dict[str, Tensor], peft_config: Any) -> Tensor:
    """Return one layer's weight with its adapter merged by peft, float32."""
    from peft import inject_adapter_in_model

    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight.float(), requires_grad=False)
    alone = copy.deepcopy(peft_config)
    alone.target_modules, alone.modules_to_save = ["layer"], None
    for key in ("trainable_token_indices", "target_parameters"):
        if hasattr(alone, key):
            setattr(alone, key, None)
    if hasattr(alone, "feedforward_modules"):
        is_inner = name.removesuffix(".weight") in alone.feedforward_modules
        alone.feedforward_modules = ["layer"] if is_inner else []
    holder = inject_adapter_in_model(alone, nn.ModuleDict({"layer": linear}), adapter_name=ADAPTER)
    layer: Any = holder["layer"]
    missing, unexpected = layer.load_state_dict({n: t.float() for n, t in part.items()}, strict=False)
    assert not unexpected and all("base_layer" in name for name in missing), (missing, unexpected)
    layer.merge()
    return torch.as_tensor(layer.get_base_layer().weight.detach())
