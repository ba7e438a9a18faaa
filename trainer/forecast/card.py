"""The GPUs of this machine, asked of nvidia-smi: no torch, no CUDA context."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass

DEFAULT_GIB = 80.0
_VERSION = re.compile(r"(\d+)\.(\d+)")


@dataclass(frozen=True, slots=True)
class Cards:
    """How many GPUs a run on this machine sees, memory of the smallest in GiB, and the lowest compute capability."""

    count: int
    gib: float | None
    capability: tuple[int, int] | None = None
    """None where nvidia-smi does not say: drivers before 510."""
    name: str | None = None
    """Of the first."""


def gib_text(gib: float) -> str:
    """Return the memory of a GPU to a tenth of a GiB, whole numbers as such."""
    return f"{gib:.1f}".removesuffix(".0")


def find_cards() -> Cards:
    """Return this machine's GPUs; none where nvidia-smi is missing or fails. CUDA_VISIBLE_DEVICES limits the count."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return Cards(0, None)
    mib = [float(line) for line in _query(program, "memory.total") if line.replace(".", "", 1).isdigit()]
    found = [_VERSION.fullmatch(line) for line in _query(program, "compute_cap")] if mib else []
    capabilities = [(int(match[1]), int(match[2])) for match in found if match]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = len(mib)
    if visible is not None:
        count = min(count, len([name for name in visible.split(",") if name.strip() not in ("", "-1")]))
    names = _query(program, "name") if mib else []
    return Cards(
        count,
        min(mib) / 1024 if mib else None,
        min(capabilities, default=None),
        names[0] if names else None,
    )


def _query(program: str, field: str) -> list[str]:
    """Return a field of every GPU; none where nvidia-smi fails."""
    command = [program, f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]
