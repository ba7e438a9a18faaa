"""Write safetensors shards from a stream of tensors, whole folder or none, and read them back."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from trainer.errors import CheckpointError, SelfCheckError
from trainer.export.earlier import note_written, refuse_foreign
from trainer.runtime.disk import FULL, disk_errno
from trainer.runtime.publish import publish_folder

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
_AS_TRAINED = {"bf16": "bfloat16", "fp32": "float32"}


def export_dtype(asked: str, trained: str) -> str:
    """Return a key of DTYPES: as asked, or for `auto` what `zero.dtype` trained in."""
    return _AS_TRAINED[trained] if asked == "auto" else asked


def export_weights(
    stream: Iterable[tuple[str, Tensor]],
    output_dir: Path,
    dtype: str,
    max_shard_bytes: int,
    write_rest: Callable[[Path], None],
    on_tensor: Callable[[str], None] = lambda name: None,
    exact: Collection[str] = (),
) -> int:
    """Write a model folder, whole or not at all, and return the number of tensors.

    Holds one shard in memory, never the model.

    Args:
        write_rest: Writes config, tokenizer and the like into the staging folder.
        exact: Names of tensors that are float32 whatever the dtype of the others.
    Raises:
        CheckpointError: The folder exists and is not ours to replace, or cannot be written.
    """
    digests: dict[str, str] = {}

    def dtype_of(name: str) -> torch.dtype:
        return torch.float32 if name in exact else DTYPES[dtype]

    def fill(staging: Path) -> None:
        digests.update(_write_shards(stream, staging, dtype_of, max_shard_bytes, on_tensor))
        write_rest(staging)
        _read_back(staging, digests)

    publish_export(output_dir, fill)
    return len(digests)


def publish_export(output_dir: Path, fill: Callable[[Path], None]) -> None:
    """Fill a folder and put it in its place; an earlier export stands until then, and is replaced.

    Raises:
        CheckpointError: The folder exists and is not ours to replace, or cannot be written.
    """

    def noted(staging: Path) -> None:
        fill(staging)
        note_written(staging)

    refuse_foreign(output_dir)  # before hours of work; and again after them
    try:
        publish_folder(output_dir, noted, keeps=refuse_foreign)
    except Exception as error:
        number = disk_errno(error)
        if not isinstance(error, OSError) and number is None:
            raise
        why = os.strerror(number) if number is not None else str(error)
        fix = "Free space or choose" if number in FULL else "Choose"
        raise CheckpointError(
            f"`export.output_dir` must be writable with room for the model, but {output_dir} failed: "
            f"{why}. {fix} another folder."
        ) from error


def _write_shards(
    stream: Iterable[tuple[str, Tensor]],
    folder: Path,
    dtype_of: Callable[[str], torch.dtype],
    max_shard_bytes: int,
    on_tensor: Callable[[str], None],
) -> dict[str, str]:
    """Write shards and the index; return a digest per tensor."""
    digests: dict[str, str] = {}
    shards: list[list[str]] = []
    pending: dict[str, Tensor] = {}
    pending_bytes = total_bytes = 0

    def flush() -> None:
        nonlocal pending, pending_bytes
        if not pending:
            return
        save_file(pending, str(folder / f"part-{len(shards)}"), metadata={"format": "pt"})
        shards.append(list(pending))
        pending, pending_bytes = {}, 0

    for name, tensor in stream:
        value = tensor.to(dtype_of(name)) if tensor.is_floating_point() else tensor
        value = value.clone() if value.data_ptr() == tensor.data_ptr() else value
        num_bytes = value.numel() * value.element_size()
        if pending and pending_bytes + num_bytes > max_shard_bytes:
            flush()
        pending[name] = value.contiguous()
        pending_bytes += num_bytes
        total_bytes += num_bytes
        digests[name] = tensor_digest(pending[name])
        on_tensor(name)
    flush()
    weight_map: dict[str, str] = {}
    for index, names in enumerate(shards):
        final = f"model-{index + 1:05d}-of-{len(shards):05d}.safetensors"
        os.rename(folder / f"part-{index}", folder / final)
        weight_map |= dict.fromkeys(names, final)
    index_json = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index_json, indent=2) + "\n")
    return digests


def _read_back(folder: Path, digests: dict[str, str]) -> None:
    """Compare every written tensor with what was meant, from the files."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    for file in sorted(set(index["weight_map"].values())):
        with safe_open(str(folder / file), framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                if tensor_digest(tensors.get_tensor(name)) != digests[name]:
                    raise SelfCheckError(
                        f"The exported tensor {name} must equal the trained one, but differs in {file}. "
                        "The disk or memory is faulty; export again elsewhere."
                    )


def tensor_digest(tensor: Tensor) -> str:
    """Return a digest of a tensor's bytes."""
    raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(raw.tobytes()).hexdigest()
