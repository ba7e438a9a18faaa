"""Config section of `palimpsest plan`."""

from __future__ import annotations

from dataclasses import dataclass

MIN_WINDOWS = 5
"""Fewer give no interval."""


@dataclass
class PlanConfig:
    """What `palimpsest plan` compares its forecast with, and where it writes."""

    gpu_gib: float | None = None
    """Memory of one GPU in GiB; null takes the card that is there, else 80. More than 0."""
    reserve_gib: float = 4.0
    """GiB of a GPU that tensors cannot have: CUDA context, NCCL, fragmentation. An allowance, not measured."""
    gpu: str | None = None
    """Kind of GPU that the time of a step is forecast for: H200, H100 or A100; null: the card that is there."""
    network_gbit: float = 400.0
    """Network between nodes for each GPU, as its datasheet has it. More than 0. [Gbit/s]"""
    price_per_gpu_hour: float | None = None
    """What a GPU costs in an hour, in any currency: the plan tells what the run costs. More than 0."""
    strict: bool = False
    """Exit with code 3 when the run does not fit."""
    output: str | None = None
    """File to draw LoRA over its ranks into, an SVG; null draws nothing."""
    data_windows: int = 64
    """`palimpsest plan data`: windows of 96 tokens of each source that the base is asked about. At least 5."""
    data_output: str | None = None
    """`palimpsest plan data`: file to write what it found into, as JSON; null writes none."""
