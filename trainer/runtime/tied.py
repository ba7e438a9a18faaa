"""A command whose process ends when the one that started it does, however that ended.

The kernel tells it (PR_SET_PDEATHSIG, prctl(2)). It means the thread that started the process, so only a main thread
may. This file is also the program that asks the kernel for it and then becomes the command: it imports nothing of ours.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

LAUNCHER = "PALIMPSEST_LAUNCHER"
"""Number of the process that starts ranks, for those: another parent means that it is gone."""
_PR_SET_PDEATHSIG = 1


def tied(command: Sequence[str], number: signal.Signals, *, launches_ranks: bool = False) -> list[str]:
    """Return the command line of a process that gets a signal when this process ends; main thread only.

    Args:
        launches_ranks: Its children are ranks, which find its number in their environment.
    """
    words = [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(int(number))]
    return [*words, str(int(launches_ranks)), *command]


def become(parent: int, number: int, launches_ranks: bool, command: Sequence[str]) -> None:
    """Turn this process into the command, tied to its parent; it ends where that is gone already."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # it ended before the kernel was asked
        os.kill(os.getpid(), number)
    if launches_ranks:
        os.environ[LAUNCHER] = str(os.getpid())
    os.execvp(command[0], list(command))


if __name__ == "__main__":
    become(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "1", sys.argv[4:])
