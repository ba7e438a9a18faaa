"""A process that holds something, told so that another machine, or the same one later, knows whether it is there."""

from __future__ import annotations

import dataclasses
import os
import platform
from pathlib import Path


@dataclasses.dataclass(frozen=True, slots=True)
class Machine:
    """What numbers of processes are counted in."""

    host: str
    boot: str
    """Of the kernel that runs; two machines with one name differ in it."""
    processes: str
    """Namespace of the processes: a container may have its own."""


@dataclasses.dataclass(frozen=True, slots=True)
class Holder:
    """Who has a lease."""

    id: str
    machine: Machine
    pid: int
    started: str
    """When the process began, in ticks of its machine: numbers of processes come again."""
    job: str
    attempt: int
    is_over: bool = False

    @property
    def words(self) -> str:
        """Return the holder in words."""
        job = f", job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.machine.host}{job}"


def this_machine() -> Machine:
    """Return where this process runs."""

    def read(path: str) -> str:
        try:
            return Path(path).read_text(encoding="utf-8").strip()
        except OSError:
            return ""

    try:
        processes = os.readlink("/proc/self/ns/pid")
    except OSError:
        processes = ""
    return Machine(platform.node(), read("/proc/sys/kernel/random/boot_id"), processes)


def is_running(holder: Holder) -> bool:
    """Tell whether the process of a holder on this machine is there."""
    return started(holder.pid) == holder.started != ""


def started(pid: int) -> str:
    """Return when a process of this machine began; nothing where there is none, or it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
