"""Tells one tracker every record once and in order, on a thread of its own: training never waits for it or fails by it.

A step that comes again, after a resume or because the run went back before a spike, is told again where the tracker
takes the earlier one back, and not at all where it only adds: it never has two of one step.

A record that was not taken is tried again while later ones wait. What a run's end leaves undelivered is counted and
said; the next attempt goes on from the bookmark, with the records of metrics.jsonl.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import queue
import threading
import time
from collections.abc import Iterable
from typing import Any

from trainer.config.check_log import tracked_name
from trainer.config.fence import LOOK_S, check_publish
from trainer.config.many import many
from trainer.errors import CheckpointError
from trainer.metrics.redact import redact
from trainer.metrics.sink import Record
from trainer.metrics.tracker import Bookmark, Conclusion, Numbers, Told, Tracker

_LOG = logging.getLogger(__name__)

CLOSE_S = 60.0
"""Longest wait for a tracker at the end of a run."""
_QUIET_S = 2.0
"""Of that wait, what is not worth a line."""
_TRIES = 12
"""Tries of a record, some eight minutes, before it is left out: one that is never taken must not hold up the others."""
_LONGEST_PAUSE_S = 60.0
_MAX_WAITING = 100_000


class Delivery:
    """Stands between the journal and one tracker.

    Ranks:
        Rank 0 only.
    """

    def __init__(self, name: str, tracker: Tracker, bookmark: Bookmark, close_s: float = CLOSE_S) -> None:
        """Take a tracker whose run began, and start its thread."""
        self._name = name
        self._tracker = tracker
        self._bookmark = bookmark
        self._known = bookmark.mark
        self._at = Told()
        self._close_s = close_s
        self._waiting: queue.Queue[tuple[Told, Numbers]] = queue.Queue(_MAX_WAITING)
        self._conclusion: Conclusion | None = None
        self._status: str | None = None
        self._is_ending = threading.Event()
        self._has_ended = False
        self._num_left_out = 0
        self._num_failures = 0
        self.num_known = 0
        """Records that the tracker had already."""
        self._thread = threading.Thread(target=self._deliver, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def write(self, step: int, record: Record) -> None:
        """Queue the numbers of a record, unless the tracker was told them before and keeps what it was told."""
        if step < self._at.step:
            self._go_back(step)
        self._at = Told(step, self._at.record + 1 if step == self._at.step else 1)
        if self._at <= self._known:
            self.num_known += 1
            return
        self._known = self._at
        numbers = {tracked_name(key): value for key, value in record.items() if not isinstance(value, str)}
        try:
            self._waiting.put_nowait((self._at, numbers))
        except queue.Full:
            self._num_left_out += 1

    def catch_up(self, records: Iterable[dict[str, Any]]) -> None:
        """Tell what metrics.jsonl holds and the tracker does not have: lost with a process, or before it was used."""
        for record in records:
            rest = {key: value for key, value in record.items() if key not in ("step", "time")}
            self.write(int(record["step"]), rest)

    def conclude(self, found: Conclusion) -> None:
        """Keep what the run came to; it is told after all records."""
        numbers = {tracked_name(key): value for key, value in found.numbers.items()}
        self._conclusion = dataclasses.replace(found, numbers=numbers)

    def close(self, status: str | None) -> None:
        """Wait for what is queued, but not for ever, and say what was not delivered. A second call does nothing."""
        if self._has_ended:
            return
        self._has_ended = True
        self._status = status
        self._is_ending.set()
        self._thread.join(min(_QUIET_S, self._close_s))
        if self._thread.is_alive():
            _LOG.warning(
                "Waiting for %s to take the last of %s, at most %.0f s.",
                self._name,
                many(self._waiting.qsize(), "waiting record") if self._waiting.qsize() else "the run",
                self._close_s,
            )
            self._thread.join(max(self._close_s - _QUIET_S, 0.0))
        missing = self._num_left_out + self._waiting.qsize()
        if self._thread.is_alive():
            _LOG.warning(
                "%s does not answer and is left alone after %.0f s with %s not sent, the newest of them or "
                "its end. metrics.jsonl has everything.",
                self._name,
                self._close_s,
                many(missing, "record"),
            )
        elif missing:
            _LOG.warning(
                "%s was not sent %s, after %s. metrics.jsonl has everything.",
                self._name,
                many(missing, "record"),
                many(self._num_failures, "failure"),
            )

    def _go_back(self, step: int) -> None:
        """Take steps from one on again."""
        if self._tracker.takes_back:
            self._known = Told.through(step - 1)
            return
        _LOG.info(
            "%s only adds: it keeps what it was told of steps %d to %d; metrics.jsonl has what stands.",
            self._name,
            step,
            self._known.step,
        )

    def _deliver(self) -> None:
        """Run on the thread; ends where another run has the directory, which tells the tracker from then on."""
        try:
            self._deliver_all()
        except CheckpointError as error:
            _LOG.warning("%s is told nothing more. %s", self._name, error)

    def _deliver_all(self) -> None:
        while True:
            try:
                mark, numbers = self._waiting.get(timeout=0.1)
            except queue.Empty:
                if self._is_ending.is_set():
                    break
                continue
            if not self._try(mark, numbers):
                self._num_left_out += 1
                if self._is_ending.is_set():
                    break
        self._end()

    def _try(self, mark: Told, numbers: Numbers) -> bool:
        """Hand a record over, again after a pause when it fails; tell whether it was taken."""
        for number in range(_TRIES):
            try:
                check_publish(self._bookmark.path, LOOK_S)
                self._tracker.write(mark.step, numbers)
                self._bookmark.advance(mark)
                return True
            except CheckpointError:
                raise
            except Exception as error:
                self._report(error)
            if self._is_ending.wait(min(2.0**number, _LONGEST_PAUSE_S)) and number:
                return False
        return False

    def _end(self) -> None:
        check_publish(self._bookmark.path)
        # One after the other: what a run came to is worth a try even where its records failed.
        if self._conclusion is not None:
            try:
                self._tracker.conclude(self._conclusion)
            except Exception as error:
                self._report(error)
        with contextlib.suppress(Exception):
            self._tracker.close(self._status)

    def _report(self, error: Exception) -> None:
        self._num_failures += 1
        if self._num_failures > 1:
            _LOG.debug("%s failed again (%d): %s", self._name, self._num_failures, error)
            return
        reason = redact({"reason": f"{type(error).__name__}: {error}"})["reason"]
        _LOG.warning(
            "%s failed (%s); the run goes on, metrics.jsonl stays complete, and it is tried again.",
            self._name,
            " ".join(str(reason).split())[:300],
        )


def close_all(deliveries: Iterable[Delivery], status: str | None) -> None:
    """Close all; together they may take little longer than the slowest."""
    threads = [threading.Thread(target=one.close, args=(status,), daemon=True) for one in deliveries]
    for thread in threads:
        thread.start()
    until = time.monotonic() + CLOSE_S + 10
    for thread in threads:
        thread.join(max(until - time.monotonic(), 0.0))
