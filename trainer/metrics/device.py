"""Memory of this rank's device in GiB, and the device in words.

Reads counters only: nothing here waits for the device.
"""

from __future__ import annotations

import os

_GIB = 1024.0**3


def device_memory_gib() -> tuple[float, float]:
    """Return (peak allocated, reserved) of the CUDA device; (RSS, RSS) of the process on CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / _GIB, torch.cuda.memory_reserved() / _GIB
    import psutil  # type: ignore[import-untyped, unused-ignore]

    rss_gib = psutil.Process().memory_info().rss / _GIB
    return rss_gib, rss_gib


def describe_device() -> str:
    """Return the device and its memory; `peak_flops` accepts the text as a device name."""
    import torch

    if torch.cuda.is_available():
        total_bytes = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        return f"{torch.cuda.get_device_name()}, {total_bytes / _GIB:.1f} GiB"
    import psutil  # type: ignore[import-untyped, unused-ignore]

    total_gib = psutil.virtual_memory().total / _GIB
    return f"CPU, {os.cpu_count()} cores, {total_gib:.1f} GiB"
