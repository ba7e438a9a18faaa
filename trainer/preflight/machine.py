"""What this machine is and has, for a person who asks: no measurements, and no torch needed."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import trainer
from trainer.config.snapshot import installed
from trainer.preflight.versions import PACKAGES, driver_version

_ANSWER_S = 10


def describe_machine(run_dir: Path, cache_dir: Path) -> Iterator[tuple[str, str]]:
    """Yield names and what there is."""
    import psutil  # type: ignore[import-untyped, unused-ignore]

    memory_gib = psutil.virtual_memory().total / 2**30
    yield "host", f"{platform.node()}, {os.cpu_count()} CPU cores, {memory_gib:.0f} GiB, {platform.system()}"
    yield "palimpsest", f"{trainer.__version__} in {Path(trainer.__file__).parent}"
    yield "Python", f"{platform.python_version()}, {sys.executable}"
    there = {name: installed(name) for name in PACKAGES}
    yield "installed", ", ".join(f"{name} {version}" for name, version in there.items() if version)
    missing = [name for name, version in there.items() if not version]
    if missing:
        yield "not installed", ", ".join(missing)
    yield "torch", _torch()
    yield "GPUs", _gpus()
    yield "SLURM", _slurm()
    for name, folder in (("run directory", run_dir), ("cache", cache_dir)):
        yield name, _disk(folder)


def _torch() -> str:
    if installed("torch") is None:
        return "not installed: submit, status and plan work without it"
    import torch

    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "a build without CUDA"
    if not torch.cuda.is_available():
        return f"{torch.__version__}, {cuda}"
    from torch.cuda import nccl

    version = ".".join(map(str, nccl.version()))  # type: ignore[no-untyped-call]
    return f"{torch.__version__}, {cuda}, NCCL {version}"


def _gpus() -> str:
    driver = driver_version()
    if installed("torch") is None:
        return f"not counted without torch; driver {driver or 'not loaded'}"
    import torch

    if not torch.cuda.is_available():
        return f"none that torch can use; driver {driver or 'not loaded'}"
    names = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    kinds = dict.fromkeys(f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB" for gpu in names)
    return f"{len(names)} x {' and '.join(kinds)}; driver {driver or 'not known'}"


def _slurm() -> str:
    if shutil.which("sinfo") is None:
        return "not here"
    try:
        done = subprocess.run(
            ["sinfo", "--noheader", "--format=%P %D %t"], capture_output=True, text=True, timeout=_ANSWER_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"sinfo does not answer: {error}"
    if done.returncode:
        return (
            f"sinfo fails: {done.stderr.strip().splitlines()[0] if done.stderr.strip() else done.returncode}"
        )
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    job = os.environ.get("SLURM_JOB_ID")
    return "; ".join(lines[:6]) + (f"; inside job {job}" if job else "")


def _disk(folder: Path) -> str:
    nearest = folder
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    usage = shutil.disk_usage(nearest)
    return f"{folder}: {usage.free / 1e9:.3g} GB free of {usage.total / 1e9:.3g}"
