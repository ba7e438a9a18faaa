"""What the processes of a check tell the first one, as JSON; and what is made of it. Pure.

Measured elsewhere, judged in verdict.py.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Check(Enum):
    """The checks, in the order of the table."""

    rendezvous = "rendezvous"
    versions = "versions"
    gpus = "GPUs"
    matmul = "matmul"
    run_dir = "run directory"
    clocks = "clocks"
    within = "all-reduce in nodes"
    between = "all-reduce between nodes"


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """One GPU through NVML; None is what NVML, or this GPU, does not tell."""

    name: str
    memory_gib: float
    uuid: str = ""
    ecc_errors: int | None = None
    """Uncorrected since the driver was loaded."""
    is_remap_pending: bool | None = None
    has_remap_failed: bool | None = None
    slowdowns: list[str] = field(default_factory=list)
    """Why it runs slower than it could, under load."""
    temperature_c: int | None = None
    unread: str | None = None
    """Why NVML was not asked, or did not answer."""


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What one process of a node tells for all of them."""

    versions: dict[str, str | None]
    code: dict[str, str]
    """Digest by file of the package."""
    config: str
    """Digest of the configuration that this node reads."""
    num_gpus: int
    """GPUs that torch sees."""
    gpu_trouble: str | None = None
    """Why torch sees none."""


@dataclass(frozen=True, slots=True)
class RankFacts:
    """What one process measured."""

    rank: int
    local_rank: int
    node: str
    on_gpu: bool = False
    gpu: GpuFacts | None = None
    matmul_flops: float | None = None
    """FLOP/s of bf16 on a GPU, of fp32 on a CPU."""
    trouble: str | None = None
    """What the GPU failed with."""
    of_node: NodeFacts | None = None
    """From the first process of each node."""

    @property
    def where(self) -> str:
        """Return the node and, on a GPU, which of its GPUs."""
        return f"GPU {self.local_rank} of {self.node}" if self.on_gpu else self.node


@dataclass(frozen=True, slots=True)
class FolderFacts:
    """What the first process of a node found of the run directory."""

    node: str
    is_seen: bool = True
    """The first node's file was there, with what it had written."""
    seen_after_s: float = 0.0
    write_error: str | None = None
    free_bytes: int | None = None
    is_seen_by_first: bool = True
    """The first node found what this one wrote."""


@dataclass(frozen=True, slots=True)
class ClockFacts:
    """How far a node's clock is ahead of the first node's, in seconds."""

    node: str
    ahead_s: float
    round_trip_s: float
    """The shortest exchange: the truth is within half of it."""


@dataclass(frozen=True, slots=True)
class BandwidthFacts:
    """Bus bandwidths that one process measured, in 10^9 bytes a second; None where it was alone."""

    rank: int
    node: str
    within: float | None = None
    between: float | None = None
    pairs: dict[str, float] = field(default_factory=dict)
    """Bandwidth between this node and others, alone with each; measured when a floor is missed."""
    error: str | None = None


@dataclass(frozen=True, slots=True)
class NodeProblem:
    """One thing to mend: which nodes, and the sentence."""

    check: Check
    nodes: tuple[str, ...]
    sentence: str


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    check: Check
    nodes: int
    """How many were checked."""
    result: str
    has_failed: bool = False


def to_json(value: Any) -> str:
    """Return a dataclass of this file as one line."""
    return json.dumps(dataclasses.asdict(value))


def rank_facts(text: str) -> RankFacts:
    """Read what `to_json` wrote."""
    plain = json.loads(text)
    gpu, of_node = plain.pop("gpu"), plain.pop("of_node")
    return RankFacts(**plain, gpu=gpu and GpuFacts(**gpu), of_node=of_node and NodeFacts(**of_node))
