"""Ranks that stand still while a signal is on its way to them: no test is about who is faster."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

import psutil


def ranks_of(run_dir: Path) -> list[psutil.Process]:
    """Return the processes of this machine that train a run, without what they have started themselves."""
    found = {process.pid: process for process in psutil.process_iter() if _trains(process, run_dir)}
    return [process for process in found.values() if _parent(process) not in found]


def stand_still(run_dir: Path) -> list[psutil.Process]:
    """Stop the ranks of a run where they are, until somebody resumes them; return them."""
    ranks = ranks_of(run_dir)
    assert ranks, f"no rank trains {run_dir}"
    for rank in ranks:
        rank.suspend()
    return ranks


def go_on(ranks: list[psutil.Process]) -> None:
    """Undo `stand_still`."""
    for rank in ranks:
        with contextlib.suppress(psutil.NoSuchProcess):
            rank.resume()


def is_waiting(rank: psutil.Process, number: signal.Signals) -> bool:
    """Tell whether a signal has reached a process that stands still."""
    lines = Path(f"/proc/{rank.pid}/status").read_text().splitlines()
    sets = [int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd:", "ShdPnd:"))]
    return any(pending >> (number - 1) & 1 for pending in sets)


def _trains(process: psutil.Process, run_dir: Path) -> bool:
    with contextlib.suppress(psutil.Error):
        line = [word for word in process.cmdline() if word != "-u"]
        return line[1:] == ["-m", "trainer", "train", "--config", f"{run_dir}/config.yaml"]
    return False


def _parent(process: psutil.Process) -> int | None:
    with contextlib.suppress(psutil.Error):
        return process.ppid()
    return None
