"""A file of lines that only grows, whole lines alone; what a full disk does not take waits in memory."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

from trainer.config.fence import LOOK_S, check_publish
from trainer.config.many import many
from trainer.runtime.disk import disk_errno

_LOG = logging.getLogger(__name__)
_MOST_UNSYNCED = 1 << 20
"""Bytes that are written and perhaps not on disk yet: they are kept, as a disk may say at the end that it lost them."""
_MOST_WAITING = 64 << 20
"""Bytes that a disk has not taken, beyond which nobody waits for it any more."""


class LineFile:
    """Appends lines in order. What the disk does not take waits, and is tried again with the next line.

    What was written of a line that did not fit is cut off again: no line is there in part.

    Ranks:
        Rank 0 only.
    """

    def __init__(self, path: Path, begin: int) -> None:
        """Open the file for appending.

        Args:
            begin: Its size in bytes; it ends with a whole line.
        Raises:
            OSError: It cannot be opened.
        """
        self.path = path
        self._file = path.open("ab", buffering=0)
        self._size_on_disk = begin
        self._kept = bytearray()  # since then
        self._num_written = 0
        self._is_torn = False
        self._is_waiting = False

    def add(self, line: str, to_disk: bool) -> None:
        """Append a line, and wait until it is on disk where that is asked.

        Raises:
            OSError: It is no full or failing disk, or too much waits for it.
            CheckpointError: Another run has taken the run directory.
        """
        check_publish(self.path, LOOK_S)
        self._kept += line.encode()
        error = self._bring(to_disk or len(self._kept) > _MOST_UNSYNCED)
        if error is not None and len(self._kept) > _MOST_WAITING:
            raise error

    def sync(self) -> None:
        """Bring every line to the disk.

        Raises:
            OSError: Some still wait.
        """
        if not self._file.closed and (error := self._bring(to_disk=True)) is not None:
            raise error

    def close(self) -> None:
        """Bring every line to the disk and close the file; a second call does nothing.

        Raises:
            OSError: Some could not be brought there.
        """
        try:
            self.sync()
        finally:
            self._file.close()

    def _bring(self, to_disk: bool) -> OSError | None:
        """Write what waits; return what the disk says where it does not take it."""
        number = self._file.fileno()
        num_waiting = self._kept.count(b"\n", self._num_written)
        try:
            self._cut()
            rest = bytes(self._kept[self._num_written :])
            while rest:
                rest = rest[os.write(number, rest) :]
            if to_disk:
                self._num_written = 0  # unless the disk says that it has them
                os.fsync(number)
                self._size_on_disk += len(self._kept)
                self._kept.clear()
        except OSError as error:
            error.filename = error.filename or str(self.path)
            if disk_errno(error) is None:
                raise
            self._is_torn = True
            with contextlib.suppress(OSError):
                self._cut()
            self._say_once(error)
            return error
        self._num_written = len(self._kept)
        if self._is_waiting:
            self._is_waiting = False
            _LOG.info("%s is whole: the disk has taken %s.", self.path, many(num_waiting, "line"))
        return None

    def _say_once(self, error: OSError) -> None:
        if self._is_waiting:
            return
        self._is_waiting = True
        _LOG.warning(
            "%s could not be written: %s. Its lines wait in memory and are tried again with the next one; no "
            "checkpoint is committed without them.",
            self.path,
            error.strerror,
        )

    def _cut(self) -> None:
        """Cut off what is there of lines that wait."""
        if self._is_torn:
            check_publish(self.path)
            os.ftruncate(self._file.fileno(), self._size_on_disk + self._num_written)
            self._is_torn = False
