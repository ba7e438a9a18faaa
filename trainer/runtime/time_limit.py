"""End Python code of a stranger, such as a chat template, that computes for too long.

The sandbox of Jinja lets a template loop, and loops in loops need not end. Counted is the computing time of the thread,
so that a busy machine ends nothing. What a single call of C does, such as making one huge text, is not interrupted.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Iterator

PERIOD_S = 0.25
"""Between two looks at the clocks of those that compute."""


class TookTooLong(Exception):
    """Code has computed for longer than it may."""


class _Watch:
    """One thread of a process that ends what is over its time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.limits: dict[int, float] = {}
        self.ended: set[int] = set()
        self.pid = 0
        self.is_needed = threading.Event()

    def begin(self, thread: int, limit_s: float) -> None:
        """Watch a thread until its clock shows `limit_s`."""
        with self.lock:
            if self.pid != os.getpid():  # threads do not follow into a fork
                self.pid, self.limits, self.is_needed = os.getpid(), {}, threading.Event()
                threading.Thread(target=self._run, name="time limit", daemon=True).start()
            self.limits[thread] = limit_s
        self.is_needed.set()

    def end(self, thread: int) -> bool:
        """Watch a thread no longer; tell whether it was told to end."""
        with self.lock:
            self.limits.pop(thread, None)
            was_told = thread in self.ended
            self.ended.discard(thread)
            if was_told:  # and has not heard of it
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), None)
        return was_told

    def _run(self) -> None:
        while True:
            self.is_needed.wait()
            time.sleep(PERIOD_S)
            with self.lock:
                for thread, limit_s in list(self.limits.items()):
                    if _computed_s(thread) > limit_s:
                        del self.limits[thread]
                        self.ended.add(thread)
                        error = ctypes.py_object(TookTooLong)
                        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), error)
                if not self.limits:
                    self.is_needed.clear()


_watch = _Watch()


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Let this thread compute for so long inside.

    Raises:
        TookTooLong: It computes for longer, give or take the period of the watch.
    """
    thread = threading.get_ident()
    _watch.begin(thread, _computed_s(thread) + seconds)
    try:
        yield
    finally:
        was_told = _watch.end(thread)
    if was_told:
        raise TookTooLong


def _computed_s(thread: int) -> float:
    return time.clock_gettime(time.pthread_getcpuclockid(thread))
