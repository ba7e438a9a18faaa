"""Memory counters and the words for the device."""

from __future__ import annotations

import pytest

from trainer.metrics.device import describe_device, device_memory_gib
from trainer.metrics.flops import peak_flops

torch = pytest.importorskip("torch")
without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")


@without_cuda
def test_memory_on_cpu_is_the_resident_size_of_the_process() -> None:
    peak_gib, reserved_gib = device_memory_gib()
    assert 0.01 < peak_gib == reserved_gib < 1000


@without_cuda
def test_device_on_cpu_is_described_and_has_no_peak() -> None:
    assert describe_device().startswith("CPU, ")
    assert peak_flops(describe_device()) is None
