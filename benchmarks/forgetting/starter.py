"""How the commands of the experiment are started: forked from a warm process, or each anew."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from trainer.start.local import free_port

HERE = Path(__file__).resolve().parent
CODE_KILLED = -int(signal.SIGKILL)
NUM_THREADS = os.environ.get("OMP_NUM_THREADS", "2")
"""Of a command. Torch reads it when it is imported: of a forked one, in the process that forks. With all cores for each
of eight runs on 16 cores, which wait for each other's threads, nothing moved for minutes."""


def rank_words() -> dict[str, str]:
    """Return the variables of the one rank of a job."""
    return {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": str(free_port())}


class Plain:
    """Starts `python -m trainer` anew for each command."""

    said = "each command is a process of its own"

    def __init__(self) -> None:
        """Nothing runs yet."""
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._is_over = False

    def run(self, argv: list[str], log: Path, env: dict[str, str]) -> int:
        """Run a command to its end and return its code; that of a kill where all was ended."""
        with log.open("ab") as stream, self._lock:
            if self._is_over:
                return CODE_KILLED
            process = subprocess.Popen(
                [sys.executable, "-m", "trainer", *argv],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env=os.environ | {"OMP_NUM_THREADS": NUM_THREADS} | env,
                start_new_session=True,
            )
            self._running.add(process)
        code = process.wait()
        with self._lock:
            self._running.discard(process)
        return code

    def end(self) -> None:
        """Kill what runs; nothing is started any more."""
        with self._lock:
            self._is_over = True
            for process in self._running:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


class Warm:
    """Talks to warm.py."""

    said = "commands are forked from a process that has imported everything"

    def __init__(self, log: Path) -> None:
        """Start it and wait until it has imported everything; `why_not` says whether it can be used."""
        with log.open("ab") as stream:
            self._process = subprocess.Popen(
                [sys.executable, str(HERE / "warm.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                env=os.environ | {"OMP_NUM_THREADS": NUM_THREADS},
                start_new_session=True,
            )
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._waiting: dict[str, tuple[threading.Event, list[int]]] = {}
        self._is_over = False
        first = self._process.stdout.readline() if self._process.stdout else b""
        self.why_not: str | None = json.loads(first)["ready"] if first else f"it ended: {log}"
        if self.why_not is None:
            threading.Thread(target=self._listen, daemon=True).start()

    def run(self, argv: list[str], log: Path, env: dict[str, str]) -> int:
        """As `Plain.run`."""
        name = str(next(self._numbers))
        over, codes = threading.Event(), list[int]()
        asked: dict[str, Any] = {"id": name, "argv": argv, "env": env, "log": str(log)}
        with self._lock:
            if self._is_over or self._process.stdin is None:
                return CODE_KILLED
            self._waiting[name] = (over, codes)
            self._process.stdin.write(json.dumps(asked).encode() + b"\n")
            self._process.stdin.flush()
        over.wait()
        return codes[0]

    def _listen(self) -> None:
        for line in self._process.stdout or ():
            told = json.loads(line)
            over, codes = self._waiting.pop(told["id"])
            codes.append(int(told["code"]))
            over.set()
        with self._lock:  # it ended: so did its children
            self._is_over = True
            for over, codes in self._waiting.values():
                codes.append(CODE_KILLED)
                over.set()

    def end(self) -> None:
        """As `Plain.end`."""
        with self._lock:
            self._is_over = True
            if self._process.stdin is not None:
                with contextlib.suppress(OSError):
                    self._process.stdin.close()  # it kills its children
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        self._process.kill()


def start_warm(log: Path, wants_warm: bool) -> Plain | Warm:
    """Return what starts commands, and say which and why."""
    if wants_warm:
        warm = Warm(log)
        if warm.why_not is None:
            print(f"{Warm.said}.", flush=True)
            return warm
        print(f"{warm.why_not}:", end=" ")
        warm.end()
    print(f"{Plain.said}.", flush=True)
    return Plain()
