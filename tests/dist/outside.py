"""Runs as a person starts them, and what somebody does to them to them: a rank that is stopped, a dead launcher."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.dist.blows import Kill, struck
from tests.helpers.ranks import ROOT, STARTING, only, own_environment, settle_in
from trainer.start.local import held_port

WATCH_S = {"step_s": 4, "save_s": 4, "evaluate_s": 6, "finish_s": 6, "load_s": 10, "prove_s": 10}
"""A rank may stand still for so long at any place of a watched run; several times what any takes in a tiny one."""
WATCH = ["cluster.watch.beat_s=0.2", *(f"cluster.watch.{name}={limit}" for name, limit in WATCH_S.items())]
PAUSE_S = 1.0
PATIENCE_S = 180.0
"""In which ranks end, or begin, many times over."""
ORPHANS_S = 60.0
"""In which no process is left of a run that nobody waits for any more; a warden looks every second."""
NAMED = ("has given no sign of life for", "has stood still for", "was stopped by a signal (SIGSTOP) for")
"""What a run says of a rank that is stopped (trainer/dist/blame.py, watch.py)."""
Rank = multiprocessing.context.ForkServerProcess


@dataclass(slots=True)
class Met:
    """How the start ended in which somebody did something to a run."""

    was_hit: bool
    is_finished: bool = False
    problem: str | None = None


def be_rank(variables: dict[str, str], log: str, words: list[str], blow: tuple[str, str, int] | None) -> None:
    """Be a rank of a command that watches itself, which is struck when the ranks know each other."""
    settle_in(str(ROOT), own_environment() | variables, log)
    from trainer.cli import run_command
    from trainer.run import session, training

    whole = training.run_training
    with contextlib.ExitStack() as stack:
        opened = session.open_mesh

        def open_mesh(*given: Any, **named: Any) -> Any:
            mesh = opened(*given, **named)
            if blow is not None:
                stack.enter_context(struck(*blow))
            return mesh

        def run_training(config: Any) -> Any:
            with stack:
                return whole(config)

        session.open_mesh, training.run_training = open_mesh, run_training
        code = run_command(words)
    sys.exit(code)


@contextlib.contextmanager
def two_ranks(words: list[str], folder: Path, kill: Kill | None = None) -> Iterator[list[Rank]]:
    """Start the ranks of a command; whoever is still there at the end is killed. Each logs to rank-N.log."""
    folder.mkdir(parents=True, exist_ok=True)
    ranks: list[Rank] = []
    with held_port() as port:
        try:
            for rank in range(2):
                variables = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
                variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                blow = None if kill is None or kill.rank != rank else (kill.how, kill.where, kill.at)
                arguments = (variables, str(folder / f"rank-{rank}.log"), words, blow)
                process = STARTING.Process(target=be_rank, args=arguments)
                with only(own_environment()):
                    process.start()
                ranks.append(process)
            yield ranks
        finally:
            for process in ranks:
                process.kill()
                process.join()


def said_in(folder: Path) -> str:
    """Return what both ranks have said."""
    return "".join(read(folder / f"rank-{rank}.log") for rank in range(2))


def stand_still(kill: Kill, words: list[str], folder: Path) -> Met:
    """Stop a rank for ever or for a while, and see that it is named and ended, or that nobody minds."""
    with two_ranks([*words, *WATCH], folder, kill) as ranks:
        was_hit = attend(ranks, kill)
    return judged(kill, was_hit, [process.exitcode for process in ranks], said_in(folder))


def start_again(words: list[str], folder: Path) -> str | None:
    """Let both ranks of a command come to their end; return what kept them from it."""
    with two_ranks(words, folder) as ranks:
        for rank in ranks:
            rank.join(PATIENCE_S)
        codes = [rank.exitcode for rank in ranks]
    return None if codes == [0, 0] else f"started again it ended with {codes}: {said_in(folder)[-3000:]}"


def attend(ranks: list[Rank], kill: Kill) -> bool:
    """Wait for the end of all ranks; tell whether one was stopped while another needed it."""
    struck_one, other = ranks[kill.rank], ranks[1 - kill.rank]
    was_hit, deadline = False, time.monotonic() + PATIENCE_S
    while any(process.exitcode is None for process in ranks) and time.monotonic() < deadline:
        if not was_hit and other.exitcode is None and is_stopped(struck_one):
            was_hit = True
            if kill.how == "pause":
                time.sleep(PAUSE_S)
                os.kill(struck_one.pid or 0, signal.SIGCONT)
        if other.exitcode == 0 and is_stopped(struck_one):  # both were done: nobody waits for it
            was_hit = False
            os.kill(struck_one.pid or 0, signal.SIGCONT)
        time.sleep(0.01)
    return was_hit


def is_stopped(rank: Rank) -> bool:
    try:
        return bool(psutil.Process(rank.pid).status() == psutil.STATUS_STOPPED)
    except psutil.Error:
        return False


def judged(kill: Kill, was_hit: bool, codes: list[int | None], said: str) -> Met:
    """Return what is to be thought of how the ranks of a watched run ended."""
    if kill.how == "pause" or not was_hit:
        wrong = None if codes == [0, 0] else f"ended with {codes}: {said[-3000:]}"
        return Met(was_hit, True, wrong)
    if codes == [0, 0] and f"[rank {kill.rank}] Stopped by a signal for" in said:
        return Met(
            True, True
        )  # let on to write its stacks behind its last step, it came to its end before it was ended
    if not any(f"Error: Rank {kill.rank} {words}" in said for words in NAMED):
        return Met(True, problem=f"rank {kill.rank} was not named: {codes}: {said[-3000:]}")
    # Its warden lets the stopped one write its stacks before it ends it: it may hear of its failure first, or fall over
    # frames of threads that run by then, as Python's faulthandler does.
    if codes[1 - kill.rank] != 75 or codes[kill.rank] not in (75, -signal.SIGKILL, -signal.SIGSEGV):
        return Met(True, problem=f"ended with {codes}: {said[-3000:]}")
    return Met(True)


def read(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def bereave(kill: Kill, words: list[str], run_dir: Path, log: Path) -> Met:
    """Kill the command or its launcher some time after its first step began; see that no rank trains on."""
    log.parent.mkdir(parents=True, exist_ok=True)
    line = [sys.executable, "-m", "trainer", *words, "cluster.ranks_per_node=2"]
    with log.open("w") as file:
        process = subprocess.Popen(line, env=own_environment(), stdout=file, stderr=file, cwd=log.parent)
    below: list[psutil.Process] = []
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not read(run_dir / "ledger.jsonl") and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(kill.at / 1000)
        below = children(process.pid)
        launchers = [one for one in below if is_child(one, process.pid)]
        if process.poll() is not None or not launchers:
            code = process.wait(PATIENCE_S)
            return Met(False, code == 0, None if code == 0 else f"ended with {code}: {read(log)[-3000:]}")
        (process if kill.how == "command" else launchers[0]).kill()
        deadline = time.monotonic() + ORPHANS_S
        while (left := [one for one in below if is_there(one)]) and time.monotonic() < deadline:
            time.sleep(0.05)
        code = process.wait(ORPHANS_S)
    finally:
        for one in [*below, process]:
            with contextlib.suppress(psutil.Error):
                one.kill()
        process.wait()
    if left:
        return Met(True, problem=f"{len(left)} processes live on: {read(log)[-3000:]}")
    if code == 0:  # it was all done
        return Met(False, True)
    return Met(True, problem=f"ended with 2: {read(log)[-3000:]}" if code == 2 else None)


def children(pid: int) -> list[psutil.Process]:
    try:
        return list(psutil.Process(pid).children(recursive=True))
    except psutil.Error:
        return []


def is_there(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def is_child(process: psutil.Process, pid: int) -> bool:
    try:
        return bool(process.ppid() == pid)
    except psutil.Error:
        return False
