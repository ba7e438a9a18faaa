"""What is left to do when the terminal that a process writes to is closed."""

from __future__ import annotations

import contextlib
import os
import stat


def let_go_of_terminal() -> None:
    """Write to nowhere in its place, where standard output and error were a terminal that is gone.

    Every line to it would raise, and end a run in the middle of the save that it was told to make.
    """
    for number in (1, 2):
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(number).st_mode) and not os.isatty(number):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, number)
                os.close(nowhere)
