"""All numbers of a checkpoint, whatever ranks and ZeRO stage wrote them: any part of any tensor, by its name.

Files are mapped into memory: what is asked for is read, and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from trainer.checkpoint.commit import WrittenFile, seal
from trainer.checkpoint.manifest import read_manifest
from trainer.checkpoint.shard_file import BUFFER, FACTS, WEIGHT, Fragment, split_key, write_shard
from trainer.errors import CheckpointError

FOLDER = "shards"
"""Folder of these files in a checkpoint."""


def write_shards(
    folder: Path, rank: int, fragments: Sequence[Fragment], facts: dict[str, Any]
) -> list[WrittenFile]:
    """Write a rank's file under a checkpoint's folder; it is on disk when this returns. Nothing of a rank without any.

    Raises:
        OSError: The disk's own words.
    """
    if not fragments and not facts:
        return []
    target = folder / FOLDER
    target.mkdir(exist_ok=True)
    path = target / f"rank-{rank:05d}.safetensors"
    write_shard(path, fragments, facts)
    return [seal(path)]


def open_shards(checkpoint: Path) -> Shards:
    """Open the files that a checkpoint's manifest names; others that lie beside them are not looked at.

    Raises:
        CheckpointError: Its manifest is damaged, or names none.
    """
    names = [name for name in read_manifest(checkpoint).files if name.startswith(f"{FOLDER}/")]
    return Shards([checkpoint / name for name in names])


class Shards:
    """The opened files of one checkpoint."""

    def __init__(self, paths: Iterable[Path]) -> None:
        """Read the headers of all files.

        Raises:
            CheckpointError: There are none.
            OSError, SafetensorError: One cannot be read.
        """
        self.shapes: dict[str, tuple[int, ...]] = {}
        """Shape of every parameter that trained, whole, in the order of the model."""
        self.scalars: dict[str, dict[str, float]] = {}
        """What the optimizer knows of a parameter beside tensors: its steps."""
        self.facts: dict[str, Any] = {}
        """What the first rank said of the whole."""
        self._runs: dict[tuple[str, str], list[tuple[int, int, Any, str]]] = {}
        self._paths = sorted(paths)
        if not self._paths:
            raise CheckpointError(
                "A checkpoint must name its shards in its manifest, but names none instead. It is of another version of"
                " palimpsest: go on with the version that wrote it."
            )
        for path in self._paths:
            file: Any = safe_open(str(path), framework="pt")
            facts = json.loads(file.metadata()[FACTS])
            for name, shape in facts.pop("shapes", {}).items():
                self.shapes[name] = tuple(shape)
            self.scalars |= facts.pop("scalars", {})
            self.facts |= facts
            for key in file.keys():  # noqa: SIM118 - it is no mapping
                kind, name, begin = split_key(key)
                shape = file.get_slice(key).get_shape()
                count = torch.Size(shape).numel()
                self._runs.setdefault((kind, name), []).append((begin, begin + count, file, key))
        for runs in self._runs.values():
            runs.sort(key=lambda run: run[:2])

    def kinds(self, name: str) -> list[str]:
        """Return the kinds of numbers that are there of a parameter."""
        return sorted(kind for kind, found in self._runs if found == name)

    @property
    def buffers(self) -> list[str]:
        """Return the names of buffers."""
        return [name for kind, name in self._runs if kind == BUFFER]

    def buffer(self, name: str) -> Tensor:
        """Return a buffer."""
        _, _, file, key = self._runs[BUFFER, name][0]
        found: Tensor = file.get_tensor(key)
        return found

    def fill(self, kind: str, name: str, begin: int, out: Tensor) -> None:
        """Copy numbers of a tensor, from `begin` on, into a flat one of any device and dtype.

        Raises:
            CheckpointError: Some of them are in no file.
        """
        at, end = begin, begin + out.numel()
        for first, last, file, key in self._runs.get((kind, name), ()):
            if last <= at:
                continue
            if first > at or at >= end:
                break
            until = min(last, end)
            out[at - begin : until - begin].copy_(file.get_slice(key)[at - first : until - first])
            at = until
        if at < end:
            raise CheckpointError(
                f"The shards of a checkpoint must hold the numbers {begin} to {end} of {name} ({kind}), but end at {at}"
                " instead. Bring the checkpoint back from its source."
            )

    def whole(self, name: str) -> Tensor:
        """Return a parameter as it trained, whole, in float32 where the optimizer kept it so.

        Raises:
            CheckpointError: It is not here, or a part of it is not.
        """
        shape = torch.Size(self.shapes[name])
        runs = self._runs.get((WEIGHT, name))
        dtype = torch.float32 if runs is None else runs[0][2].get_slice(runs[0][3])[:0].dtype
        flat = torch.empty(shape.numel(), dtype=dtype)
        self.fill(WEIGHT, name, 0, flat)
        return flat.view(shape)
