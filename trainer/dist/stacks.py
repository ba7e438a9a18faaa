"""What the threads of a rank were at, written where a hang is found: Python's stacks, and NCCL's flight recorder."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import sys
import threading
from collections.abc import Callable
from io import TextIOWrapper
from pathlib import Path
from types import FrameType

from trainer.dist.warden import WRITE_STACKS

_LOG = logging.getLogger(__name__)

RECORDER_SIZE = "2000"
"""Collectives that NCCL's flight recorder keeps, where the environment names no number."""
_IN_COLLECTIVES = ("/torch/distributed/", "/deepspeed/comm/")


class Stacks:
    """The file RANK.stacks of a rank in the attempt's folder of logs; removed where nothing was written to it."""

    def __init__(self, rank: int) -> None:
        """Write nowhere until there is a folder."""
        self._rank = rank
        self._path: Path | None = None
        self._file: TextIOWrapper | None = None

    def keep_in(self, folder: Path) -> None:
        """Take the folder; it is there, and so is room for a file, or nothing is written."""
        with contextlib.suppress(OSError):
            self._path = folder / f"rank-{self._rank}.stacks"
            self._file = self._path.open("a", encoding="utf-8")
            # For the warden, where Python's lock is held or this process is stopped. A timer of faulthandler's reads
            # the frames of threads that run when a suspended job goes on, which ends Python 3.9 to 3.13 by SIGSEGV.
            faulthandler.register(WRITE_STACKS, file=self._file, all_threads=True)

    def end_after(self, seconds: float) -> None:
        """End the process with 1 after a time, whatever its threads do."""
        file = self._file if self._file is not None else sys.__stderr__
        if file is not None:
            faulthandler.dump_traceback_later(seconds, exit=True, file=file)

    def write(self, headline: str) -> None:
        """Write the stacks of all threads, and what the flight recorder knows."""
        file = self._file
        if file is None or self._path is None:
            return
        with contextlib.suppress(OSError):
            file.write(f"{headline}\n\n")
            file.flush()
            faulthandler.dump_traceback(file=file, all_threads=True)
            recorded = _flight_recorder()
            if isinstance(recorded, bytes):
                path = self._path.with_suffix(".nccl.json")
                path.write_bytes(recorded)
                recorded = f"in {path.name}"
            file.write(f"\nNCCL's flight recorder: {recorded}\n")
            file.flush()

    def close(self) -> None:
        """Stop waiting, and remove a file that nothing was written to."""
        faulthandler.cancel_dump_traceback_later()
        faulthandler.unregister(WRITE_STACKS)
        if self._file is None or self._path is None:
            return
        with contextlib.suppress(OSError):
            self._file.close()
            if self._path.stat().st_size == 0:
                self._path.unlink()
        self._file = None


def record_collectives() -> None:
    """Ask NCCL to remember its collectives; before the process group is made."""
    for name in ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE"):
        os.environ.setdefault(name, RECORDER_SIZE)


def _flight_recorder() -> bytes | str:
    """Return what NCCL's flight recorder holds as JSON, or why there is none."""
    if "torch.distributed" not in sys.modules:  # nothing is imported any more in a process that is to end
        return "none, torch is not loaded."
    try:
        import torch.distributed as torch_dist
        from torch._C import _distributed_c10d as c10d

        if not torch_dist.is_initialized() or "nccl" not in str(torch_dist.get_backend()):
            return "none, the ranks do not use NCCL."
        dump: Callable[[], str | bytes] | None = getattr(c10d, "_dump_nccl_trace_json", None)
        if dump is None:
            return "none, this torch has no _dump_nccl_trace_json."
        found = dump()
        return found.encode() if isinstance(found, str) else found
    except Exception as error:  # of another torch; the stacks are written all the same
        return f"none, {type(error).__name__}: {error}"


def main_thread_at() -> tuple[str, bool]:
    """Return the innermost line of the main thread, and whether it is within a collective."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    if frame is None:
        return "nowhere", False
    where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"
    return where, any(part in name for name in _files(frame) for part in _IN_COLLECTIVES)


def _files(frame: FrameType | None) -> list[str]:
    found = []
    while frame is not None:
        found.append(frame.f_code.co_filename)
        frame = frame.f_back
    return found
