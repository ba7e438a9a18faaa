"""Config section of `palimpsest plan`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class PlanConfig:
    """What `palimpsest plan` compares its forecast with, and where it writes."""

    gpu_gib: float | None = None
    """Memory of one GPU in GiB; null takes the card that is there, else 80. More than 0."""
    reserve_gib: float = 4.0
    """GiB of a GPU that tensors cannot have: CUDA context, NCCL, fragmentation. An allowance, not measured."""
    strict: bool = False
    """Exit with code 3 when the run does not fit."""
    output: str | None = None
    """File to draw LoRA over its ranks into, an SVG; null draws nothing."""
