"""Waiting for a condition as long as a slow machine needs: no test knows how long something takes."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import TypeVar

LIMIT_S = 900.0
"""The one limit of all that a test waits for. Many times what anything takes on a busy machine: only what hangs meets
it. Less than the limit of a test in tests/run.sh, which says less of what was waited for."""

PATIENT = ("cluster.preflight.timeout_s=600", "cluster.preflight.rendezvous_s=300")
"""For checks of nodes whose point is not their limits: several processes load torch at once."""

Value = TypeVar("Value")


def wait_until(
    condition: Callable[[], Value],
    what: str,
    seen: Callable[[], object] | None = None,
    process: subprocess.Popen | None = None,
    poll_s: float = 0.05,
) -> Value:
    """Wait until a condition holds, and return what it returned.

    Raises:
        AssertionError: The limit has passed, or `process`, which should bring it about, has ended; it is killed. The
            message tells what was waited for, and what `seen` returns then.
    """
    end = time.monotonic() + LIMIT_S
    while True:
        # Asked before the condition: a process that has brought it about may end.
        code = process.poll() if process is not None else None
        if found := condition():
            return found
        why = f"not within {LIMIT_S:.0f} s" if time.monotonic() > end else ""
        if code is not None:
            why = f"the process ended with {code}"
        if why:
            if process is not None:
                process.kill()
            raise AssertionError(f"{what}: {why}. Last seen: {seen() if seen else found!r}")
        time.sleep(poll_s)
