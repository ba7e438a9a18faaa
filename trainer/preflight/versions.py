"""Read what is installed on a node, and digest the code that it runs."""

from __future__ import annotations

import hashlib
import platform
import re
from importlib import resources
from pathlib import Path

import trainer
from trainer.config.snapshot import installed

PACKAGES = (
    *("deepspeed", "transformers", "peft", "flash-attn", "liger-kernel", "bitsandbytes"),
    *("datasets", "lm-eval", "vllm", "wandb", "nvidia-ml-py"),
)
"""Packages beside torch whose versions are told; those of the first line shape the numbers of a run."""
COMPARED = PACKAGES[:6]
_CODE = (".py", ".json", ".yaml", ".tmpl", ".sh")
_DRIVER = Path("/proc/driver/nvidia/version")


def compared_versions() -> dict[str, str | None]:
    """Return what must be the same on all nodes. Imports torch, nothing else."""
    import torch

    nccl = None
    if torch.cuda.is_available():
        from torch.cuda import nccl as torch_nccl

        nccl = ".".join(map(str, torch_nccl.version()))  # type: ignore[no-untyped-call]
    return {
        "palimpsest": trainer.__version__,
        "Python": platform.python_version(),
        "torch": str(torch.__version__),
        "CUDA": torch.version.cuda,
        "NCCL": nccl,
        "driver": driver_version(),
        **{package: installed(package) for package in COMPARED},
    }


def driver_version() -> str | None:
    """Return the version of the NVIDIA driver that is loaded."""
    try:
        text = _DRIVER.read_text(encoding="utf-8")
    except OSError:
        return None
    match = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)\s", text)
    return match.group(1) if match else None


def code_digests() -> dict[str, str]:
    """Return eight characters by file of the package, for all files that are code or are read by it."""
    digests: dict[str, str] = {}
    # A checkout has two packages beside the others; in the wheel they are below them.
    for name in ("trainer", "trainer.conf", "trainer.launch"):
        root = Path(str(resources.files(name)))
        for path in sorted(root.rglob("*")):
            if path.suffix in _CODE:
                key = f"{name.replace('.', '/')}/{path.relative_to(root).as_posix()}"
                digests[key] = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    return digests
