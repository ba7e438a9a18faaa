"""What DeepSpeed is told that ranks compute on, where a person says so: looked at before anything imports it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from trainer.config.rule import Problem, must
from trainer.errors import TopologyError

NAME = "DS_ACCELERATOR"


def accelerator_problems(environ: Mapping[str, str], is_here: bool = True) -> Iterator[Problem]:
    """Yield a problem where ranks could not begin: DeepSpeed does not know the accelerator, or it is not here.

    Loads torch where a GPU is asked for and no driver of NVIDIA's is seen: it may be another's.

    Args:
        is_here: The ranks are to run on this machine.
    """
    told = environ.get(NAME)
    if told not in (None, "cpu", "cuda"):
        yield must(NAME, "cuda, cpu or unset", told, "Unset it.")
    elif told == "cuda" and is_here and not _sees_gpu(environ):
        fix = f"Unset it, or set {NAME}=cpu to compute on the processor."
        yield must(NAME, "cpu or unset where no GPU is seen", told, fix)


def refuse_accelerator(environ: Mapping[str, str]) -> None:
    """Raise in a rank where DeepSpeed is told of what it cannot take.

    Raises:
        TopologyError: Names the variable.
    """
    for one in accelerator_problems(environ):
        raise TopologyError(one.sentence)


def _sees_gpu(environ: Mapping[str, str]) -> bool:
    if environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    if Path("/dev/nvidiactl").exists():
        return True
    import torch

    return torch.cuda.device_count() > 0
