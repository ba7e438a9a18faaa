"""End this process when it is not done in time, whatever it hangs in.

Three lines: a thread that says what hangs; the kernel's alarm, for a call that holds Python's lock; and the
job script's own limit, for a process that the kernel cannot end.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

LAST_WORDS_S = 4.0
"""Seconds to say what hangs."""


@contextlib.contextmanager
def ended_after(seconds: float, last_words: Callable[[], None], code: int) -> Iterator[None]:
    """Let `last_words` be said and the process end with `code`, unless the block ends before."""
    is_done = threading.Event()

    def watch() -> None:
        if is_done.wait(seconds):
            return
        speaker = threading.Thread(target=last_words, daemon=True)
        speaker.start()
        speaker.join(LAST_WORDS_S)
        if not is_done.is_set():
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    threading.Thread(target=watch, daemon=True).start()
    # Its default action ends the process without asking Python.
    previous = signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds + LAST_WORDS_S + 1)
    try:
        yield
    finally:
        is_done.set()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
