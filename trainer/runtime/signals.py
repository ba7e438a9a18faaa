"""Turn signals into a flag that the loop reads between steps.

Handlers only set the flag: saving inside one could meet a rank in the middle of a collective.
"""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)


class StopFlag:
    """Remembers the first signal that asked this process to stop; a context manager.

    Ranks:
        Every rank. A signal may reach one rank only, so ranks must agree before they act on it.
    """

    def __init__(self) -> None:
        """Start without a request and without handlers."""
        self._reason: str | None = None
        self._num_interrupts = 0
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self._reason is not None

    @property
    def reason(self) -> str | None:
        """Name of the first signal, such as `SIGTERM`."""
        return self._reason

    def __enter__(self) -> StopFlag:
        """Install the handlers; main thread only."""
        for number in _SIGNALS:
            self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Put the previous handlers back."""
        for number, handler in self._previous.items():
            # None: the handler was not set from Python and cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            self._num_interrupts += 1
            if self._num_interrupts > 1:
                raise KeyboardInterrupt
        if self._reason is None:
            self._reason = signal.Signals(number).name
