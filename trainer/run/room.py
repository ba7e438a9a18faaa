"""Room for weights in FP8 or MXFP4, which grow while they are read: looked for before the first of them is.

Without ZeRO-3 every rank makes all of them whole where it computes. With it each does so in host memory, from which
shards go to GPUs: transformers reads what is packed whole on every rank.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from trainer.config.many import many
from trainer.config.schema import RunConfig
from trainer.dist.mesh import Mesh
from trainer.errors import ModelError
from trainer.model.dtype import ELEMENT_BYTES
from trainer.model.meta import count_whole
from trainer.model.packing_kind import becomes_whole, method_of
from trainer.runtime.host_memory import bytes_available

_GIB = 1024**3


@dataclass(frozen=True, slots=True)
class Room:
    """Memory that a rank may still take, and whose it is."""

    place: str
    """A GPU, or the host memory of a node, which its ranks share."""
    left: int
    """Bytes."""


def require_room(config: RunConfig, source: str, packing: dict[str, Any] | None, mesh: Mesh) -> None:
    """Refuse packed weights that are too large for this machine once they are whole. Collective: every rank.

    Raises:
        ModelError: On all ranks, where one of them has no room.
    """
    if packing is None or not becomes_whole(packing):
        return
    element_bytes = ELEMENT_BYTES[config.zero.dtype]
    need = int(mesh.from_first(lambda: count_whole(source, config.model))) * element_bytes
    short = without_room(need, mesh.gather(_room_of(mesh, config.zero.stage)))
    if short is None:
        return
    place, num_ranks, left = short
    each = "" if num_ranks == 1 else f" on each of {many(num_ranks, 'rank')}"
    raise ModelError(
        f"`model.path` must hold weights that fit into memory once they are whole, but those of {source}, in "
        f"{method_of(packing)}, take {need / _GIB:.3g} GiB in {config.zero.dtype}{each} instead, and {place} has "
        f"{left / _GIB:.3g} GiB left. Set {_fix(config, mesh, num_ranks)}."
    )


def without_room(need: int, rooms: Iterable[Room]) -> tuple[str, int, int] | None:
    """Return the first place without room for the ranks that share it, how many they are, and the bytes left there.

    Args:
        need: Bytes that each rank takes.
        rooms: One of each rank.
    """
    places: dict[str, tuple[int, int]] = {}
    for room in rooms:
        count, least = places.get(room.place, (0, room.left))
        places[room.place] = (count + 1, min(least, room.left))
    return next(((name, n, left) for name, (n, left) in places.items() if n * need > left), None)


def _room_of(mesh: Mesh, stage: int | None) -> Room:
    """Return where this rank makes weights whole."""
    node = platform.node()
    if mesh.device.type != "cuda" or stage == 3:
        return Room(f"the host memory of {node}", bytes_available())
    return Room(f"GPU {mesh.device.index} of {node}", int(torch.cuda.mem_get_info(mesh.device)[0]))


def _fix(config: RunConfig, mesh: Mesh, num_ranks: int) -> str:
    fixes = ["zero.dtype=bf16"] if config.zero.dtype == "fp32" else []
    fixes += ["fewer cluster.ranks_per_node"] if num_ranks > 1 else []
    fixes += ["zero.stage=3"] if mesh.device.type == "cuda" and config.zero.stage != 3 else []
    fixes.append("model.path to a smaller model, or to one in NF4 with recipe=qlora")
    return ", or ".join(fixes)
