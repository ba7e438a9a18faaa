"""What DeepSpeed is told that ranks compute on, where a person says so: judged here alone, before it is imported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from trainer.config.rule import Problem, must
from trainer.errors import TopologyError

NAME = "DS_ACCELERATOR"
DRIVER = "/dev/nvidiactl"
"""There where NVIDIA's driver is loaded."""


def accelerator_problems(environ: Mapping[str, str], is_here: bool = True) -> Iterator[Problem]:
    """Yield a problem where ranks could not begin: an accelerator that is unknown, not here, or the processor by a GPU.

    A rank computes on every GPU that it sees, which DeepSpeed must know of. Loads torch where a GPU is asked for and no
    driver of NVIDIA's is seen, as it may be another's; and where the processor is, beside a driver of NVIDIA's.

    Args:
        is_here: The ranks are to run on this machine.
    """
    told = environ.get(NAME)
    if told not in (None, "cpu", "cuda"):
        yield must(NAME, "cuda, cpu or unset", told, "Unset it.")
    elif told == "cuda" and is_here and not _sees_gpu(environ):
        fix = f"Unset it, or set {NAME}=cpu to compute on the processor."
        yield must(NAME, "cpu or unset where no GPU is seen", told, fix)
    elif told == "cpu" and is_here and _can_use_gpu(environ):
        fix = "Unset it, or hide all GPUs as well (CUDA_VISIBLE_DEVICES=-1) to compute on the processor."
        yield must(NAME, "unset where a GPU is seen", told, fix)


def refuse_accelerator(environ: Mapping[str, str]) -> None:
    """Raise in a rank where DeepSpeed is told of what it cannot take.

    Raises:
        TopologyError: Names the variable.
    """
    for one in accelerator_problems(environ):
        raise TopologyError(one.sentence)


def _sees_gpu(environ: Mapping[str, str]) -> bool:
    if _hides_gpus(environ):
        return False
    return Path(DRIVER).exists() or _num_gpus() > 0


def _can_use_gpu(environ: Mapping[str, str]) -> bool:
    """Tell whether torch finds a GPU; a driver without one, or that torch is too new for, leaves the processor."""
    return not _hides_gpus(environ) and Path(DRIVER).exists() and _num_gpus() > 0


def _hides_gpus(environ: Mapping[str, str]) -> bool:
    return environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")


def _num_gpus() -> int:
    import torch

    return torch.cuda.device_count()
