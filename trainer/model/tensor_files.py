"""The safetensors files of a model: which tensor is in which, and reading one."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch


def weight_files(source: str, revision: str | None = None) -> dict[str, Path]:
    """Return tensor name -> safetensors file of a local model folder, or of a name in the hub's cache; else nothing."""
    folder = Path(source) if Path(source).exists() else _cached_folder(source, revision)
    if folder is None:
        return {}
    index = folder / "model.safetensors.index.json"
    if index.exists():
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        complete = all((folder / file).exists() for file in set(weight_map.values()))
        return {name: folder / file for name, file in weight_map.items()} if complete else {}
    single = folder / "model.safetensors"
    if not single.exists():
        return {}
    from safetensors import safe_open

    with safe_open(str(single), framework="pt") as tensors:
        return {name: single for name in tensors.keys()}  # noqa: SIM118


def tensor_types(files: Mapping[str, Path]) -> dict[str, str]:
    """Return the type of every tensor as safetensors names it, such as F8_E4M3, from the heads of the files."""
    from safetensors import safe_open

    found: dict[str, str] = {}
    for file in sorted(set(files.values())):
        with safe_open(str(file), framework="pt") as tensors:
            found |= {name: str(tensors.get_slice(name).get_dtype()) for name in tensors.keys()}  # noqa: SIM118
    return found


def _cached_folder(name: str, revision: str | None) -> Path | None:
    """Return the folder of a model in the hub's cache; None without its config.json there."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


@contextlib.contextmanager
def tensor_reader(is_empty: bool = False) -> Iterator[Callable[[Path, str], torch.Tensor]]:
    """Give a function that reads one tensor of a safetensors file; every file is opened once, and closed at the end.

    Args:
        is_empty: Read the shape alone, into a tensor without memory.
    """
    from safetensors import safe_open

    with contextlib.ExitStack() as stack:
        opened: dict[Path, Any] = {}

        def read(file: Path, name: str) -> torch.Tensor:
            if file not in opened:
                opened[file] = stack.enter_context(safe_open(str(file), framework="pt"))
            if is_empty:
                return torch.empty(opened[file].get_slice(name).get_shape(), device="meta")
            return torch.as_tensor(opened[file].get_tensor(name))

        yield read
