"""A small process beside a rank that ends it where nothing in it can.

A rank that is stopped, or in a call that never gives Python's lock back, runs no thread of its own; one whose launcher
was killed would train on for nobody. The rank tells its warden again and again how long it may stay silent, and how
long it may be stopped by a signal: a stopped rank is at work on nothing, however long what it is at may take.

This file is also the warden's program: it imports nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

LAUNCHER = "PALIMPSEST_LAUNCHER"
"""As trainer/runtime/tied.py leaves it."""
POLL_S = 1.0
HELD_S = 5.0
"""A look that comes so late was held up with everything else (a suspended job or machine): nobody is blamed for it."""
LAST_WORDS_S = 2.0
"""Time for a rank that was stopped or stuck to write its stacks."""
TELLING_S = 10.0
"""Time for a rank that goes on after it was stopped to tell the others, and to end by itself."""
WRITE_STACKS = signal.SIGRTMIN + 5
"""A signal at which a rank writes them, without Python's lock."""
_NEVER = "-"
_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "LD_PRELOAD")


class Warden:
    """The rank's end of it."""

    def __init__(self, rank: int, ties: Sequence[int]) -> None:
        """Start the process.

        Args:
            ties: Processes whose end is this rank's end.
        """
        reader, self._pipe = os.pipe()
        os.set_blocking(self._pipe, False)
        words = [sys.executable, "-I", "-S", __file__, str(rank), str(os.getpid()), *map(str, ties)]
        # Without the variables of a rank, for which nobody must take it; and in a session that Ctrl-C does not reach.
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        self.told, writer = os.pipe()
        """What the warden says to the rank: for how many seconds it was stopped. Readable once."""
        self.process = subprocess.Popen(words, stdin=reader, stdout=writer, env=kept, start_new_session=True)
        os.close(reader)
        os.close(writer)

    def allow(self, seconds: float | None, stopped_s: float | None = None) -> None:
        """Give this process so long until it must say so again; None: for ever.

        Args:
            stopped_s: How long it may be stopped by a signal; None: as long as it may be silent.
        """
        words = [_NEVER if one is None else f"{one:.3f}" for one in (seconds, stopped_s)]
        # The pipe is full, or the warden is gone: the rank is not ended for it.
        with contextlib.suppress(OSError):
            os.write(self._pipe, f"{' '.join(words)}\n".encode())

    def stopped_s(self) -> float | None:
        """Return for how long this process was stopped before its warden let it go on; None: the warden is gone."""
        text = os.read(self.told, 100).decode()
        return float(text) if text else None


_started: dict[int, Warden] = {}
"""By process: a fork has none."""


def start_warden(rank: int, environ: Mapping[str, str]) -> None:
    """Start the warden of this process, unless it has one.

    Raises:
        ConnectionError: The launcher is gone already.
    """
    if os.getpid() not in _started:
        _started[os.getpid()] = Warden(rank, ties_of(environ, os.getppid()))


def this_warden() -> Warden | None:
    """Return the warden of this process; None where it has none."""
    return _started.get(os.getpid())


def ties_of(environ: Mapping[str, str], parent: int) -> list[int]:
    """Return the processes whose end leaves this rank to nobody: its launcher, and the connection that started that.

    Raises:
        ConnectionError: The launcher is gone already.
    """
    told = environ.get(LAUNCHER, "")
    if told.isdigit() and int(told) not in (parent, os.getpid()) and "RANK" in environ:
        raise ConnectionError("The launcher of this rank was killed before the rank began.")
    launchers = ("CROSS_RANK", "TORCHELASTIC_RUN_ID", "OMPI_COMM_WORLD_RANK", "SLURM_STEP_ID")
    is_launched = told == str(parent) or any(name in environ for name in launchers)
    if not is_launched or parent <= 1:
        return []
    over_ssh = _session_of_ssh(parent) if int(environ.get("CROSS_SIZE", "1")) > 1 else None
    return [parent] if over_ssh is None else [parent, over_ssh]


def _session_of_ssh(pid: int) -> int | None:
    """Return the nearest process above that serves a connection of ssh; None without one."""
    while pid > 1:
        found = _stat(pid)
        if found is None:
            return None
        if found[0].startswith("sshd"):
            return pid
        pid = int(found[2])
    return None


def _stat(pid: int) -> tuple[str, str, str, str] | None:
    """Return name, state, parent and time of birth of a process; None where it is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            text = file.read()
    except OSError:
        return None
    name, fields = text[text.index("(") + 1 : text.rindex(")")], text[text.rindex(")") + 2 :].split()
    return name, fields[0], fields[1], fields[19]


def _born(pid: int) -> str | None:
    """Return what tells a process from a later one of its number; None where it has ended."""
    found = _stat(pid)
    return None if found is None or found[1] in "ZX" else found[3]


def keep_watch(rank: int, pid: int, ties: Sequence[int]) -> None:
    """Be the warden: wait for the end of the rank, of a process that it is tied to, or of its time."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    births = {one: _born(one) for one in (pid, *ties)}
    deadline: float | None = None
    allowed_s, stopped_s, most_stopped_s = 0.0, 0.0, math.inf
    left = b""
    last = time.monotonic()
    while births[pid] is not None and _born(pid) == births[pid]:
        gone = [one for one in ties if births[one] is None or _born(one) != births[one]]
        if gone:
            _say(f"[rank {rank}] Its launcher (process {gone[0]}) is gone: it is ended, and saves nothing.")
            _kill(pid)
            return
        if deadline is not None and time.monotonic() > deadline:
            _say(f"[rank {rank}] No sign of life for {allowed_s:.0f} s (stopped, or stuck): it is ended.")
            _end_slowly(pid)
            return
        if stopped_s > most_stopped_s:
            _say(f"[rank {rank}] Stopped by a signal for {stopped_s:.0f} s: it is ended.")
            _let_tell(pid, stopped_s)
            return
        has_news, _, _ = select.select([0], [], [], POLL_S)
        now = time.monotonic()
        is_held = now - last > POLL_S + HELD_S
        if deadline is not None and is_held:
            deadline += now - last
        stopped_s = stopped_s + now - last if _is_stopped(pid) and not is_held else 0.0
        last = now
        if not has_news:
            continue
        data = os.read(0, 65536)
        if not data:
            return  # the rank is gone
        *lines, left = (left + data).split(b"\n")
        if lines:
            allowed, most_stopped = (_seconds(word) for word in lines[-1].decode().split())
            deadline = None if allowed == math.inf else now + (allowed_s := allowed)
            most_stopped_s = most_stopped


def _seconds(word: str) -> float:
    return math.inf if word == _NEVER else float(word)


def _is_stopped(pid: int) -> bool:
    """Tell whether a signal stopped a process; a debugger is another matter."""
    found = _stat(pid)
    return found is not None and found[1] == "T"


def _let_tell(pid: int, stopped_s: float) -> None:
    """Let a process that was stopped go on, so that it can tell the others why it ends; then kill it."""
    with contextlib.suppress(OSError):
        os.write(1, f"{stopped_s:.0f}".encode())
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
    until = time.monotonic() + TELLING_S
    while _born(pid) is not None and time.monotonic() < until:
        time.sleep(0.1)
    _kill(pid)


def _end_slowly(pid: int) -> None:
    """Let a process that was stopped go on just long enough to write where it was, then kill it."""
    with contextlib.suppress(ProcessLookupError):
        if _listens(pid):
            os.kill(pid, WRITE_STACKS)
        os.kill(pid, signal.SIGCONT)
        time.sleep(LAST_WORDS_S)
    _kill(pid)


def _listens(pid: int) -> bool:
    """Tell whether a process does something at the signal: any other is ended by it before it has said a word."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status", encoding="utf-8") as file:
        for line in file:
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (WRITE_STACKS - 1) & 1)
    return False


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    keep_watch(int(sys.argv[1]), int(sys.argv[2]), [int(word) for word in sys.argv[3:]])
