"""Where records go: the Sink protocol and the fan-out over several of them.

Knows no concrete sink; the composition root decides which ones a run cannot do without.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Protocol

_LOG = logging.getLogger(__name__)

Value = float | int | str | bool
Record = Mapping[str, Value]


class Sink(Protocol):
    """Takes flat records of one step.

    Ranks:
        Rank 0 only.
    """

    def write(self, step: int, record: Record) -> None:
        """Write one record."""

    def close(self, status: str) -> None:
        """Flush and release; `status` says how the run ended: `finished`, `failed`, ..."""


class Sinks:
    """Writes every record to all sinks.

    Ranks:
        Rank 0 only; other ranks build it without sinks.
    """

    def __init__(self, required: Sequence[Sink] = (), optional: Sequence[Sink] = ()) -> None:
        """Take the sinks; an error ends the run in `required` ones only."""
        self._required = list(required)
        self._optional = list(optional)
        self._reported: set[int] = set()

    def write(self, step: int, record: Record) -> None:
        """Write one record to every sink."""
        for sink in self._required:
            sink.write(step, record)
        for sink in self._optional:
            try:
                sink.write(step, record)
            except Exception as error:
                self._report_once(sink, error)

    def close(self, status: str) -> None:
        """Close every sink; the first error of a required one is raised when all are closed."""
        first_error: Exception | None = None
        for sink in [*self._optional, *self._required]:
            try:
                sink.close(status)
            except Exception as error:
                if sink in self._required:
                    first_error = first_error or error
                else:
                    self._report_once(sink, error)
        if first_error is not None:
            raise first_error

    def _report_once(self, sink: Sink, error: Exception) -> None:
        if id(sink) in self._reported:
            return
        self._reported.add(id(sink))
        _LOG.warning(
            "%s failed (%s: %s); the run goes on and metrics.jsonl stays complete.",
            type(sink).__name__,
            type(error).__name__,
            error,
        )
