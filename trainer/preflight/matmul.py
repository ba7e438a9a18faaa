"""Time matrix products on one device, and read its health while it works."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch

from trainer.preflight.facts import GpuFacts
from trainer.preflight.gpu import read_gpu

GPU_SIZE, CPU_SIZE = 8192, 512
"""Rows and columns: three matrices of 128 MiB in bf16, of 1 MiB in fp32."""
GPU_S, CPU_S = 0.6, 0.1
"""Seconds of work: clocks and temperatures of a GPU need some to settle."""
_BATCH = 8
"""Products between two looks at the clock."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Rate in FLOP/s, and the GPU under that load."""

    flops: float
    gpu: GpuFacts | None


def measure(device: torch.device) -> Measured:
    """Return the median rate of a device.

    Raises:
        RuntimeError: The GPU fails.
    """
    on_gpu = device.type == "cuda"
    size, seconds = (GPU_SIZE, GPU_S) if on_gpu else (CPU_SIZE, CPU_S)
    dtype = torch.bfloat16 if on_gpu else torch.float32
    left_MM = torch.randn(size, size, device=device, dtype=dtype)
    right_MM = torch.randn(size, size, device=device, dtype=dtype)
    out_MM = torch.empty_like(left_MM)
    rates: list[float] = []
    gpu = None
    is_warm, end = False, 0.0
    while True:
        start = time.perf_counter()
        for _ in range(_BATCH if on_gpu else 1):
            torch.mm(left_MM, right_MM, out=out_MM)
        if on_gpu:
            if is_warm and gpu is None and len(rates) > 2:
                gpu = _read(device)
            torch.cuda.synchronize(device)
        now = time.perf_counter()
        if is_warm:
            rates.append((_BATCH if on_gpu else 1) * 2 * size**3 / (now - start))
        else:
            # The first products load kernels.
            is_warm, end = True, now + seconds
        if now >= end and len(rates) > 3:
            return Measured(statistics.median(rates), gpu)


def _read(device: torch.device) -> GpuFacts:
    properties = torch.cuda.get_device_properties(device)
    return read_gpu(properties.name, properties.total_memory / 2**30, str(properties.uuid))
