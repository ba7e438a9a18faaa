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
GPU_BATCH = 8
"""Products between two looks at the clock."""
LOAD_S = 0.3
"""Seconds of work given to a GPU before NVML is asked how it bears it."""


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
    num = GPU_BATCH if on_gpu else 1
    dtype = torch.bfloat16 if on_gpu else torch.float32
    left_MM = torch.randn(size, size, device=device, dtype=dtype)
    right_MM = torch.randn(size, size, device=device, dtype=dtype)
    out_MM = torch.empty_like(left_MM)

    def multiply(times: int) -> None:
        for _ in range(times):
            torch.mm(left_MM, right_MM, out=out_MM)

    # The first products load kernels.
    multiply(num)
    _wait(device)
    rates: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(rates) < 3:
        start = time.perf_counter()
        multiply(num)
        _wait(device)
        rates.append(num * 2 * size**3 / (time.perf_counter() - start))
    flops = statistics.median(rates)
    if not on_gpu:
        return Measured(flops, None)
    # NVML is asked while the products are still running.
    multiply(round(LOAD_S * flops / (2 * size**3)) + 1)
    gpu = _read(device)
    _wait(device)
    return Measured(flops, gpu)


def _read(device: torch.device) -> GpuFacts:
    properties = torch.cuda.get_device_properties(device)
    return read_gpu(properties.name, properties.total_memory / 2**30, str(properties.uuid))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
