"""Choose what a run computes in where `zero.dtype` is auto: bf16 where the hardware computes in it, else float32.

Importing this loads no torch.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass

AUTO = "auto"
NO_BF16 = "PALIMPSEST_NO_BF16"
"""Variable that hides bf16, to see what a machine without it does: anything but empty or 0."""
LEAST_CAPABILITY = (8, 0)
"""CUDA compute capability from which GPUs multiply in bf16. Older ones have fp16, which needs loss scaling."""
ELEMENT_BYTES = {"bf16": 2, "fp32": 4}


@dataclass(frozen=True, slots=True)
class Hardware:
    """What the ranks of a run compute on."""

    capability: tuple[int, int] | None
    """The lowest CUDA compute capability among the GPUs; None without a GPU."""
    has_instructions: bool
    """The processor multiplies in bf16. Of no interest beside a GPU."""
    is_hidden: bool = False
    """A person hides bf16."""


BF16_GPU = Hardware(LEAST_CAPABILITY, False)
"""What is taken for GPUs that cannot be asked."""


@dataclass(frozen=True, slots=True)
class DtypeChoice:
    """The dtype, `bf16` or `fp32`, and why."""

    name: str
    reason: str

    @property
    def sentence(self) -> str:
        """Return what was chosen and why."""
        shown = "bf16" if self.name == "bf16" else "float32"
        return f"Training in {shown}: {self.reason} (zero.dtype={self.name})."


def choose_dtype(hardware: Hardware) -> DtypeChoice:
    """Return the dtype for hardware."""
    if hardware.is_hidden:
        return DtypeChoice("fp32", f"{NO_BF16} hides bf16")
    if hardware.capability is not None:
        shown = ".".join(map(str, hardware.capability))
        if hardware.capability >= LEAST_CAPABILITY:
            return DtypeChoice("bf16", "the GPU computes in it")
        need = ".".join(map(str, LEAST_CAPABILITY))
        return DtypeChoice("fp32", f"the GPU has compute capability {shown} and bf16 needs {need}")
    if hardware.has_instructions:
        return DtypeChoice("bf16", "the processor has instructions for it")
    return DtypeChoice("fp32", "this processor has no instructions for bf16")


def is_hidden(environ: Mapping[str, str]) -> bool:
    """Tell whether a person hides bf16."""
    return environ.get(NO_BF16, "") not in ("", "0")


def hardware_here(environ: Mapping[str, str] = os.environ) -> Hardware:
    """Look at the GPUs that this process sees, or at the processor. Loads torch."""
    import torch

    hides = is_hidden(environ)
    num_gpus = torch.cuda.device_count() if environ.get("DS_ACCELERATOR") != "cpu" else 0
    if not num_gpus:
        return Hardware(None, _has_instructions(), hides)
    return Hardware(min(map(torch.cuda.get_device_capability, range(num_gpus))), False, hides)


def _has_instructions() -> bool:
    """Tell whether the processor has bf16 instructions and oneDNN uses them.

    oneDNN alone says yes to any AVX-512, where it emulates bf16: 17 GFLOP/s of a core against 31 in float32 with
    ONEDNN_MAX_CPU_ISA=AVX512_CORE (AMD Zen 4, torch 2.13), 5 against 22 with AVX2, 52 against 21 with AVX512_CORE_BF16.
    """
    import torch

    try:
        is_used = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):  # built without oneDNN
        return False
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return is_used
    flags = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return is_used and any(getattr(torch.cpu, flag)() for flag in flags)
