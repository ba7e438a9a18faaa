"""What stands between DeepSpeed and the disk: its shards are taken in memory, written and read by our own code.

DeepSpeed's save makes folders, copies scripts and writes files between its own barriers, so that a full disk on one
rank leaves the others waiting there. Here nothing touches a file before all ranks are through with it.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from trainer.errors import CheckpointError

TAG = "engine"
"""Folder of the shards in a checkpoint."""
MODULE_PREFIX = "lm."
"""Name of the model inside the objective that the engine wraps."""
DEEPSPEEDS = {
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
}
"""All that shards hold beside tensors, numbers and texts: plain values of DeepSpeed's. Nothing else is unpickled."""


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A file this rank wrote."""

    path: Path
    num_bytes: int
    sha256: str


class Collector:
    """Stands in for DeepSpeed's checkpoint engine during one save: keeps what would be written, and writes nothing.

    The states hold the engine's own tensors, not copies: write them before the next step.
    """

    def __init__(self, inner: Any) -> None:
        """Wrap DeepSpeed's writer."""
        self.inner = inner
        self.states: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        """Leave everything but files to DeepSpeed's writer."""
        return getattr(self.inner, name)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Make no folder."""

    def save(self, state_dict: Any, path: str) -> None:
        """Keep one file's content under its name."""
        _name_stage(state_dict)
        self.states[Path(path).name] = state_dict


class Provider:
    """Stands in for DeepSpeed's checkpoint engine during one load: gives what was read before."""

    def __init__(self, inner: Any, states: dict[str, Any]) -> None:
        """Wrap DeepSpeed's reader; `states` are as `read_states` returns them."""
        self.inner = inner
        self._states = states

    def __getattr__(self, name: str) -> Any:
        """Leave everything but reading to DeepSpeed's reader."""
        return getattr(self.inner, name)

    def load(self, path: str, map_location: Any = None) -> Any:
        """Return one file's content."""
        return self._states[Path(path).name]


def write_states(states: dict[str, Any], folder: Path) -> list[WrittenFile]:
    """Write a rank's states under a checkpoint's folder; each is on disk when this returns.

    Holds one tensor of them in host memory at a time.

    Raises:
        OSError: The disk's own words: torch would say "file write failed" of a full one.
    """
    target = folder / TAG
    target.mkdir(exist_ok=True)
    written = []
    for name, state in states.items():
        path = target / name
        with path.open("wb") as file:
            kept = _KeepsError(file)
            try:
                torch.save(state, cast(IO[bytes], kept))
            except Exception as error:
                raise kept.error or error from error
        written.append(seal(path))
    return written


def read_states(folder: Path, rank: int) -> dict[str, Any]:
    """Read the states that a rank loads from a checkpoint that verified, into host memory.

    Raises:
        OSError, RuntimeError, ValueError: A file cannot be read.
        CheckpointError: A file holds more than data.
    """
    patterns = (f"*zero_pp_rank_{rank}_mp_rank_*.pt", "mp_rank_*_model_states.pt")
    paths = sorted(path for pattern in patterns for path in (folder / TAG).glob(pattern))
    if not paths:
        raise FileNotFoundError(f"{folder / TAG} has no shard of rank {rank}")
    return {path.name: load_state(path) for path in paths}


def load_state(path: Path, is_mapped: bool = False) -> Any:
    """Read one file of a checkpoint; none of it can run as code.

    Digests tell damage, not intent: whoever can write a checkpoint can write its manifest.

    Args:
        is_mapped: Leave tensors in the file until they are used.
    Raises:
        OSError, RuntimeError, ValueError: It cannot be read.
        CheckpointError: It holds more than data.
    """
    names: set[str] = set()
    try:
        names = set(get_unsafe_globals_in_checkpoint(path))
        known: list[Any] = [_named(name) for name in sorted(names & DEEPSPEEDS)]
        with safe_globals(known):
            return torch.load(path, map_location="cpu", mmap=is_mapped, weights_only=True)
    except pickle.UnpicklingError as error:
        shown = ", ".join(sorted(names - DEEPSPEEDS)) if names - DEEPSPEEDS else "what torch does not take"
        raise CheckpointError(
            f"{path} must hold tensors, numbers and texts alone, but names {shown}, which may be code. Palimpsest "
            "writes no such file: do not load it with anything else, and bring the checkpoint back from its source."
        ) from error


def _named(name: str) -> Any:
    module, _, cls = name.rpartition(".")
    return getattr(importlib.import_module(module), cls)


def seal(path: Path) -> WrittenFile:
    """Fsync a written file and return its size and SHA-256, read back from the file system."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return WrittenFile(path, path.stat().st_size, digest)


class _KeepsError:
    """The part of a file that torch.save uses; remembers the disk's error, which torch replaces by its own."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        try:
            self._file.flush()
        except OSError as error:
            self.error = self.error or error
            raise


def _name_stage(state_dict: Any) -> None:
    """Write the stage where DeepSpeed forgets it: without it no tool of theirs takes the file for ZeRO.

    Its optimizer for stage 1 in bf16 with fp32 accumulation (BF16_Optimizer) shards as stage 2 does, but leaves
    out `zero_stage` (0.19.8), so zero_to_fp32 says "is not a zero checkpoint".
    """
    optimizer = state_dict.get("optimizer_state_dict") if isinstance(state_dict, dict) else None
    if isinstance(optimizer, dict) and "single_partition_of_fp32_groups" in optimizer:
        optimizer.setdefault("zero_stage", 1)
