"""Turn signals into a flag that the loop reads between steps, or hand them on to what this process starts.

Handlers of the flag only set it, and write a line that was prepared: saving inside one could meet a rank in the middle
of a collective, and logging or printing the very stream that the signal came into.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Collection, Iterator
from types import FrameType, TracebackType
from typing import Any

from trainer.runtime.terminal import let_go_of_terminal

_SAFETY = 1.5
"""Times the longest save and step so far that must be left before the deadline."""
SOON = "what is under way ends as soon as it can."
"""What is said where nobody said more."""
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)


class StopFlag:
    """Remembers the first signal that asked this process to stop; a context manager.

    Ranks:
        Every rank. A signal may reach one rank only, so ranks must agree before they act on it.
    """

    def __init__(self, deadline: float | None = None, tells: bool = False) -> None:
        """Start without a request and without handlers.

        Args:
            deadline: Seconds since 1970 at which this process is killed, if it is known.
            tells: Answer the first signal at once with a line on standard error: the first rank.
        """
        self.when = SOON
        """What the line says: when this process will act on the signal, and what becomes of the run."""
        self._tells = tells
        self._reason: str | None = None
        self._deadline = deadline
        self._save_s = 0.0
        self._step_s = 0.0
        self._num_interrupts = 0
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal has come, or another step would leave too little time for a save."""
        if self._reason is None and self._deadline is not None:
            need_s = _SAFETY * (self._save_s + self._step_s)
            if need_s and time.time() + need_s > self._deadline:
                self._reason = "the time limit"
        return self._reason is not None

    def has_taken(self, *, step_s: float = 0.0, save_s: float = 0.0) -> None:
        """Remember the longest step and save, for which time must be left before the deadline."""
        self._step_s = max(self._step_s, step_s)
        self._save_s = max(self._save_s, save_s)

    @property
    def reason(self) -> str | None:
        """Name of the first signal, such as `SIGTERM`."""
        return self._reason

    def __enter__(self) -> StopFlag:
        """Install the handlers; main thread only."""
        for number in _SIGNALS:
            if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue  # nohup: a run that outlives its terminal
            self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Put the previous handlers back."""
        _put_back(self._previous)
        self._previous.clear()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            let_go_of_terminal()
        if number == signal.SIGINT:
            self._num_interrupts += 1
            if self._num_interrupts > 1:
                raise KeyboardInterrupt
        if self._reason is None:
            self._reason = signal.Signals(number).name
            if self._tells:
                with contextlib.suppress(OSError):  # nobody reads it any more
                    os.write(2, f"Stop asked ({self._reason}): {self.when}\n".encode(errors="replace"))


@contextlib.contextmanager
def handed_on(
    numbers: Collection[signal.Signals], tell: Callable[[int], None]
) -> Iterator[Callable[[], None]]:
    """Call `tell` with every one of these signals that comes inside; main thread only.

    Yields what must be called when the process is there that is to be told. Signals that came before are told then:
    one that ended us would leave the process alone. What we ignore until then the process begins with ignoring, as
    SIGUSR1 while it loads.
    """
    early: list[int] = []
    is_there = False
    previous: dict[signal.Signals, Any] = {}

    def on_signal(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            let_go_of_terminal()
        if is_there:
            tell(number)
        else:
            early.append(number)

    def begin() -> None:
        nonlocal is_there
        is_there = True
        for number in ignored:
            previous[number] = signal.signal(number, on_signal)
        for earlier in early:
            tell(earlier)

    ignored = [number for number in numbers if signal.getsignal(number) is signal.SIG_IGN]
    for number in set(numbers).difference(ignored):
        previous[number] = signal.signal(number, on_signal)
    try:
        yield begin
    finally:
        _put_back(previous)


def _put_back(handlers: dict[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        # None: the handler was not set from Python and cannot be put back.
        signal.signal(number, signal.SIG_DFL if handler is None else handler)
