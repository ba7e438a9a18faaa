"""NVML's answers as facts. NVIDIA's library is played by a module that answers as it does."""

import sys
import types

import pytest

from trainer.preflight.gpu import NO_PACKAGE, read_gpu, slowdowns


class NVMLError(Exception):
    pass


def nvml(**answers):
    """Return a module with NVML's names; what has no answer is not supported by the GPU."""
    module = types.ModuleType("pynvml")
    module.NVMLError = NVMLError
    module.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, module.NVML_VOLATILE_ECC, module.NVML_TEMPERATURE_GPU = 1, 0, 0
    module.nvmlInit = lambda: None
    module.nvmlDeviceGetHandleByUUID = lambda uuid: uuid

    def unsupported(*arguments):
        raise NVMLError("Not Supported")

    for name in ("TotalEccErrors", "RemappedRows", "CurrentClocksEventReasons", "Temperature"):
        setattr(module, f"nvmlDeviceGet{name}", unsupported)
    for name, answer in answers.items():
        setattr(module, f"nvmlDeviceGet{name}", lambda handle, *rest, answer=answer: answer)
    return module


def read(monkeypatch, module):
    monkeypatch.setitem(sys.modules, "pynvml", module)
    return read_gpu("NVIDIA A100", 80.0, "abc")


def test_a_healthy_gpu(monkeypatch):
    answers = {"TotalEccErrors": 0, "RemappedRows": (2, 0, 0, 0), "CurrentClocksEventReasons": 0x4}
    gpu = read(monkeypatch, nvml(**answers, Temperature=61))
    assert (gpu.ecc_errors, gpu.is_remap_pending, gpu.has_remap_failed) == (0, False, False)
    assert (gpu.slowdowns, gpu.temperature_c, gpu.uuid, gpu.unread) == ([], 61, "GPU-abc", None)


def test_a_sick_gpu(monkeypatch):
    answers = {"TotalEccErrors": 7, "RemappedRows": (0, 1, 1, 1), "CurrentClocksEventReasons": 0x8 | 0x40}
    gpu = read(monkeypatch, nvml(**answers))
    assert (gpu.ecc_errors, gpu.is_remap_pending, gpu.has_remap_failed) == (7, True, True)
    assert gpu.slowdowns == ["hardware slowdown", "hardware thermal slowdown"]


def test_what_a_gpu_does_not_support_is_not_known(monkeypatch):
    gpu = read(monkeypatch, nvml())
    assert (gpu.ecc_errors, gpu.is_remap_pending, gpu.slowdowns, gpu.temperature_c) == (None, None, [], None)
    assert gpu.unread is None


def test_an_older_nvml_names_throttling_so(monkeypatch):
    module = nvml()
    del module.nvmlDeviceGetCurrentClocksEventReasons
    module.nvmlDeviceGetCurrentClocksThrottleReasons = lambda handle: 0x80
    assert read(monkeypatch, module).slowdowns == ["power brake"]


def test_without_the_package_or_the_driver_the_reason_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert read_gpu("A", 1.0, "x").unread == NO_PACKAGE
    module = nvml()

    def lost():
        raise NVMLError("GPU is lost")

    module.nvmlInit = lost
    assert read(monkeypatch, module).unread == "NVML: GPU is lost"


@pytest.mark.parametrize(("bits", "names"), [(0x1, []), (0x4, []), (0x20, ["software thermal slowdown"])])
def test_idle_clocks_and_power_caps_are_usual(bits, names):
    assert slowdowns(bits) == names
