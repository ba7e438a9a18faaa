"""How far weights moved from the base's, by layer and kind of matrix: ||w - w0|| / ||w0|| over all of a group.

One tensor at a time, so the memory needed is that of the largest, twice.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.errors import TrainerError

if TYPE_CHECKING:
    from torch import Tensor

FILE_NAME = "layer_drift.json"
VERSION = 1
CHUNK = 1 << 22
"""Numbers that are compared in float64 at once."""
KINDS = (
    ("norm", r"norm|(^|\.)ln_"),
    ("embeddings", r"embed|(^|\.)wte|(^|\.)wpe"),
    ("head", r"lm_head|(^|\.)score\b|embed_out"),
    ("attention", r"attn|attention"),
    ("experts", r"experts?\b|router|\bgate\.weight|block_sparse_moe"),
    ("MLP", r"mlp|feed_forward|ffn|\bfc\d?\b"),
)
"""Kinds by the names that transformers' models use, the first that fits; for a figure, and nothing depends on it."""
OTHER = "other"
ALL_KINDS = "all kinds"
_LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class DriftGroup:
    """All tensors of one kind in one layer."""

    layer: int | None
    """None for what stands in no layer."""
    kind: str
    moved: float
    """||w - w0||, L2."""
    base: float
    """||w0||, L2."""

    @property
    def relative(self) -> float | None:
        """Return the share; None where the base is all zeros."""
        return self.moved / self.base if self.base else None


@dataclass(frozen=True, slots=True)
class DriftRecord:
    """The drift of one checkpoint; `why` says why there is none."""

    tuned: str
    groups: tuple[DriftGroup, ...] = ()
    total: float | None = None
    num_new: int = 0
    """Tensors that the base has not, such as a new score layer."""
    why: str | None = None
    earlier: tuple[DriftRecord, ...] = ()
    """Of checkpoints of the run that were still there, the newest first."""

    def by_layer(self) -> tuple[DriftGroup, ...]:
        """Return the groups with all kinds of a layer as one."""
        layers = sorted({one.layer for one in self.groups if one.layer is not None})
        return tuple(
            DriftGroup(
                layer,
                ALL_KINDS,
                *(
                    math.hypot(*(getattr(one, size) for one in self.groups if one.layer == layer))
                    for size in ("moved", "base")
                ),
            )
            for layer in layers
        )

    def to_text(self) -> str:
        """Return the contents of the file."""
        return json.dumps({"version": VERSION, **asdict(self)}, indent=1) + "\n"


def group_of(name: str) -> tuple[int | None, str]:
    """Return the layer and the kind of a tensor."""
    found = _LAYER.search(name)
    kind = next((kind for kind, pattern in KINDS if re.search(pattern, name)), OTHER)
    return (None if found is None else int(found.group(1))), kind


def drift(
    tuned: str, stream: Iterable[tuple[str, Tensor]], base_of: Callable[[str], Tensor | None]
) -> DriftRecord:
    """Compare tensors with the base's.

    Args:
        tuned: Name of the checkpoint.
        base_of: The base's tensor by the name of the tuned one; None for one that it has not.
    """
    sums: dict[tuple[int | None, str], list[float]] = {}
    num_new = 0
    for name, tensor in stream:
        if not tensor.is_floating_point():
            continue
        base = base_of(name)
        if base is None or base.shape != tensor.shape:
            num_new += 1
            continue
        of = sums.setdefault(group_of(name), [0.0, 0.0])
        flat, flat0 = tensor.reshape(-1), base.reshape(-1)
        for first in range(0, len(flat), CHUNK):
            wide, wide0 = (one[first : first + CHUNK].double() for one in (flat, flat0))
            of[0] += float((wide - wide0).square().sum())
            of[1] += float(wide0.square().sum())
    groups = tuple(
        DriftGroup(layer, kind, *map(math.sqrt, of))
        for (layer, kind), of in sorted(sums.items(), key=lambda item: (item[0][0] is None, item[0]))
    )
    moved, size = (math.fsum(of[number] for of in sums.values()) for number in (0, 1))
    return DriftRecord(tuned, groups, math.sqrt(moved / size) if size else None, num_new)


def read_drift(path: Path, tuned: str) -> DriftRecord | None:
    """Read the file; None where there is none, or one of another checkpoint.

    Raises:
        TrainerError: It is not as this module writes it.
    """
    if not path.exists():
        return None
    try:
        plain: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if plain.pop("version") != VERSION:
            raise ValueError("another version")
        earlier = tuple(_record(one) for one in plain.pop("earlier", ()))
        found = replace(_record(plain), earlier=earlier)
    except (ValueError, KeyError, TypeError, AssertionError, RecursionError) as error:
        raise TrainerError(
            f"{path} must be as a run writes it, but is not: {error!r}. Delete it and measure again."
        ) from error
    return found if found.tuned == tuned else None


def _record(plain: dict[str, Any]) -> DriftRecord:
    """Read one checkpoint's part; what does not fit raises."""
    groups = tuple(DriftGroup(**one) for one in plain["groups"])
    assert all(isinstance(one.moved, float) and isinstance(one.base, float) for one in groups)
    return DriftRecord(**{**plain, "groups": groups, "earlier": ()})
