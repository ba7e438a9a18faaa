"""The GPUs of this machine, asked of nvidia-smi: no torch, no CUDA context."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass

DEFAULT_GIB = 80.0


@dataclass(frozen=True, slots=True)
class Cards:
    """How many GPUs a run on this machine sees, and the memory of the smallest in GiB."""

    count: int
    gib: float | None


def find_cards() -> Cards:
    """Return this machine's GPUs; none where nvidia-smi is missing or fails. CUDA_VISIBLE_DEVICES limits the count."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return Cards(0, None)
    command = [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return Cards(0, None)
    mib = [float(line) for line in done.stdout.split() if line.replace(".", "", 1).isdigit()]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = len(mib)
    if visible is not None:
        count = min(count, len([name for name in visible.split(",") if name.strip() not in ("", "-1")]))
    return Cards(count, min(mib) / 1024 if mib else None)
