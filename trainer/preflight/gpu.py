"""Read the health of a GPU through NVML. nvidia-ml-py belongs to the extra `gpu`; without it health is not read."""

from __future__ import annotations

from typing import Any

from trainer.preflight.facts import GpuFacts

# Bits of nvmlClocksEventReasons (nvml.h); those that are not here are idle clocks and power caps, which are usual.
SLOWDOWNS = {
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
_CORE = 0
"""NVML_TEMPERATURE_GPU."""
NO_PACKAGE = "nvidia-ml-py is not installed (pip install 'palimpsest-trainer[gpu]')"


def slowdowns(reasons: int) -> list[str]:
    """Return the reasons that a healthy GPU does not give."""
    return [name for bit, name in SLOWDOWNS.items() if reasons & bit]


def read_gpu(name: str, memory_gib: float, uuid: str) -> GpuFacts:
    """Return what NVML tells of a GPU; what it does not know of this model stays None.

    Args:
        uuid: As torch names it, without `GPU-`.
    """
    try:
        import pynvml
    except ImportError:
        return GpuFacts(name, memory_gib, unread=NO_PACKAGE)
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except pynvml.NVMLError as error:
        return GpuFacts(name, memory_gib, unread=f"NVML: {error}")

    def ask(function: str, *arguments: Any) -> Any:
        try:
            return getattr(pynvml, function)(handle, *arguments)
        except (pynvml.NVMLError, AttributeError):
            return None

    # NVML renamed the function when it renamed throttling.
    reasons = ask("nvmlDeviceGetCurrentClocksEventReasons")
    if reasons is None:
        reasons = ask("nvmlDeviceGetCurrentClocksThrottleReasons")
    rows = ask("nvmlDeviceGetRemappedRows")
    return GpuFacts(
        name=name,
        memory_gib=memory_gib,
        uuid=f"GPU-{uuid}",
        ecc_errors=ask(
            "nvmlDeviceGetTotalEccErrors",
            pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
            pynvml.NVML_VOLATILE_ECC,
        ),
        is_remap_pending=None if rows is None else bool(rows[2]),
        has_remap_failed=None if rows is None else bool(rows[3]),
        slowdowns=slowdowns(reasons or 0),
        temperature_c=ask("nvmlDeviceGetTemperature", _CORE),
    )
