"""What strikes a rank while it trains: a signal at a call, in the middle of a write, or at some instant."""

from __future__ import annotations

import builtins
import contextlib
import io
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

SIGNALS = {
    "kill": signal.SIGKILL,
    "term": signal.SIGTERM,
    "stop": signal.SIGSTOP,
    "pause": signal.SIGSTOP,
}
"""By what is done to a rank. One that is paused is let go on before anybody misses it."""
LAUNCHING = ("command", "launcher")
"""What gets SIGKILL instead of a rank: the command that somebody typed, or the launcher that it started."""
CALLS = ("fsync", "rename", "replace", "unlink", "mkdir", "rmdir")
"""Of `os`, all of which a save makes."""


@dataclass(frozen=True, slots=True)
class Kill:
    """What somebody else does to a run."""

    kind: str
    background: bool
    rank: int
    how: str
    """One of SIGNALS or LAUNCHING."""
    where: str
    """`call`: before the n-th call of CALLS. `write`: half through the n-th write to a file. `ms`: n milliseconds after
    the run began."""
    at: int


class Counts:
    """The calls and writes that a process makes, and the one of them at which it is struck."""

    def __init__(self) -> None:
        """Count from nothing, and strike nowhere."""
        self.made = {"call": 0, "write": 0}
        self._due: tuple[str, int, int] | None = None

    def strike(self, where: str, at: int, number: int) -> None:
        """Send a signal to this process at the n-th."""
        self._due = where, at, number

    def is_due(self, where: str) -> bool:
        """Count one, and tell whether it is the one to be struck at."""
        self.made[where] += 1
        return self._due is not None and self._due[:2] == (where, self.made[where])

    def hit(self) -> None:
        """Send the signal; where this process lives on, it gets it once."""
        if self._due is not None:
            number, self._due = self._due[2], None
            os.kill(os.getpid(), number)


@contextlib.contextmanager
def counting(counts: Counts) -> Iterator[None]:
    """Count what changes a disk: calls of `os`, and what Python's files hand to the kernel."""
    whole = {name: getattr(os, name) for name in CALLS}
    opened = builtins.open

    class Counted(io.FileIO):
        def write(self, data: Any, /) -> int:
            if not counts.is_due("write"):
                return super().write(data)
            view = memoryview(data).cast("B")
            written = super().write(view[: max(len(view) // 2, 1)])
            counts.hit()
            return written  # whoever lives on writes the rest, as after any short write

    def open_counted(file: Any, mode: str = "r", buffering: int = -1, *words: Any, **named: Any) -> Any:
        if not set(mode) & set("wax+"):
            return opened(file, mode, buffering, *words, **named)
        ends = {key: named.pop(key) for key in ("closefd", "opener") if key in named}
        raw = Counted(file, mode.replace("b", "").replace("t", ""), **ends)
        if not buffering:
            return raw
        size = buffering if buffering > 1 else io.DEFAULT_BUFFER_SIZE
        buffer = io.BufferedRandom(raw, size) if "+" in mode else io.BufferedWriter(raw, size)
        if "b" in mode:
            return buffer
        return io.TextIOWrapper(buffer, *words, **named, line_buffering=buffering == 1)

    def watched(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if counts.is_due("call"):
                counts.hit()
            return whole[name](*arguments, **options)

        return call

    for name in CALLS:
        setattr(os, name, watched(name))
    builtins.open = io.open = open_counted  # type: ignore[assignment]
    try:
        yield
    finally:
        builtins.open = io.open = opened
        for name, function in whole.items():
            setattr(os, name, function)


@contextlib.contextmanager
def struck(how: str, where: str, at: int) -> Iterator[None]:
    """Strike this process, if it comes so far."""
    number = SIGNALS[how]
    if where == "ms":
        timer = threading.Timer(at / 1000, os.kill, (os.getpid(), number))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
        return
    counts = Counts()
    counts.strike(where, at, number)
    with counting(counts):
        yield
