"""Host memory that a process may still take: of the machine, and of the control group that a job is held in."""

from __future__ import annotations

from pathlib import Path

import psutil  # type: ignore[import-untyped, unused-ignore]

_GROUPS = Path("/sys/fs/cgroup")
_FILES = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))
"""Limit and use, of version 2 and of version 1."""


def bytes_available(groups: Path = _GROUPS) -> int:
    """Return the bytes that this machine, or this job's share of it, has left."""
    left = [int(psutil.virtual_memory().available)]
    for limit, used in _FILES:
        try:
            left.append(int((groups / limit).read_text()) - int((groups / used).read_text()))
        except (OSError, ValueError):  # no such group, or `max`
            continue
    return max(min(left), 0)
