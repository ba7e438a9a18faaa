"""Run one point of a sweep on this machine: `palimpsest train` as a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from trainer.runtime.job import EXIT_CODE, LOG_DIR, as_shells_tell
from trainer.runtime.log import attempt_dir
from trainer.runtime.signals import handed_on
from trainer.runtime.tied import tied

from .attempts import note
from .status import run_status

POLL_S = 2.0


def run_here(config_file: Path, run_dir: Path) -> tuple[int, bool]:
    """Train from a frozen configuration; return the exit code, and whether a signal to this process asked to stop.

    What it prints goes to console.log of the attempt. SIGINT and SIGTERM are passed on, so that it saves and stops.
    """
    note(run_dir, "submitted")
    logs = attempt_dir(run_dir)
    attempt = int(logs.name.rpartition("-")[2])
    note(run_dir, "started", attempt=attempt, newest="")
    command = [sys.executable, "-m", "trainer", "train", "--config", str(config_file)]
    stopped: list[int] = []
    with (logs / "console.log").open("wb") as output:

        def forward(number: int) -> None:
            if not stopped:
                print("Stopping: the run saves first.", file=sys.stderr, flush=True)
            # A second Ctrl-C ends it at once.
            process.send_signal(number)
            stopped.append(number)

        with handed_on((signal.SIGINT, signal.SIGTERM), forward) as begin:
            process = subprocess.Popen(
                tied(command, signal.SIGTERM),
                env={**os.environ, LOG_DIR: str(logs)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C reaches this process alone, which passes it on.
                start_new_session=True,
            )
            begin()
            _follow(process, run_dir)
    told = logs / EXIT_CODE
    # DeepSpeed's launcher ends with 1 after a signal, whatever its ranks end with.
    code = int(told.read_text()) if told.exists() else as_shells_tell(process.returncode)
    note(run_dir, "ended", attempt=attempt, code=code, newest="")
    return code, bool(stopped)


def _follow(process: subprocess.Popen[bytes], run_dir: Path) -> None:
    """Wait for the process; on a terminal a line shows how far it is."""
    with Console(stderr=True).status("starting") as line:
        while True:
            try:
                process.wait(POLL_S)
            except subprocess.TimeoutExpired:
                now = run_status(run_dir)
                loss = "" if now.loss is None else f", loss {now.loss:.4f}"
                line.update(f"step {now.step} of {now.num_steps or '?'}{loss}")
            else:
                return
