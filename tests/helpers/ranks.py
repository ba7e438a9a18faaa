"""Rank processes for tests: started once, then handed one function after the other.

Importing DeepSpeed takes most of a short test, so one process of a session imports it and every rank is forked from
that, and a `Ranks` pool keeps its processes and their process group; every function builds its own model and engine.
A rank that fails, dies or hangs takes the whole pool with it, and the next call starts a fresh one.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.helpers.wait import LIMIT_S
from trainer.start.local import held_port

ROOT = Path(__file__).resolve().parents[2]
STARTING = multiprocessing.get_context("forkserver")
STARTING.set_forkserver_preload(["tests.helpers.imported"])
FOREIGN = ("OMPI_", "PMI_", "SLURM_", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_", "TORCHELASTIC_")


class RankFailure(AssertionError):
    """A rank raised, died or did not answer in time; the message holds what it said."""


class Ranks:
    """A pool of rank processes on this machine (gloo, CPU)."""

    def __init__(self, num_ranks: int, folder: Path) -> None:
        self.num_ranks = num_ranks
        self._folder = folder
        self._processes: list[multiprocessing.context.ForkServerProcess] = []
        self._connections: list[Connection] = []
        self._held = contextlib.ExitStack()
        self._num_calls = 0

    def run(self, function: Callable[..., Any], timeout_s: float = LIMIT_S, **arguments: Any) -> list[Any]:
        """Call `function(mesh, **arguments)` on every rank; return what each returned, as JSON values."""
        if not self._processes:
            self._start()
        self._num_calls += 1
        answers = [self._folder / f"answer-{self._num_calls}-{rank}.json" for rank in range(self.num_ranks)]
        module = Path(function.__code__.co_filename).resolve().relative_to(ROOT).with_suffix("")
        name = f"{'.'.join(module.parts)}:{function.__qualname__}"
        for connection, answer in zip(self._connections, answers, strict=True):
            # A rank that is gone is found where its answer is waited for.
            with contextlib.suppress(BrokenPipeError):
                connection.send({"function": name, "arguments": arguments, "answer": str(answer)})
        self._wait(answers, name, time.monotonic() + timeout_s)
        return [json.loads(answer.read_text())["value"] for answer in answers]

    def close(self) -> None:
        """Kill every rank."""
        for process in self._processes:
            assert process.pid is not None
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.join()
        for connection in self._connections:
            connection.close()
        self._processes, self._connections = [], []
        self._held.close()

    def _start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        base = own_environment() | {
            "WORLD_SIZE": str(self.num_ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self._held.enter_context(held_port())),
        }
        for rank in range(self.num_ranks):
            ours, theirs = STARTING.Pipe()
            environment = base | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            process = STARTING.Process(target=serve, args=(theirs, environment, str(self._log(rank))))
            with only(own_environment()):
                process.start()
            theirs.close()
            self._processes.append(process)
            self._connections.append(ours)

    def _wait(self, answers: list[Path], name: str, deadline: float) -> None:
        while True:
            if self._troubles(answers):
                until = time.monotonic() + 0.5  # one failing rank makes the others fail: show all of them
                while len(self._troubles(answers)) < self.num_ranks and time.monotonic() < until:
                    time.sleep(0.02)
                self._fail(f"{name} failed:\n" + "\n".join(self._troubles(answers)))
            if all(answer.exists() for answer in answers):
                return
            if time.monotonic() > deadline:
                waiting = [rank for rank, answer in enumerate(answers) if not answer.exists()]
                self._fail(f"{name} was not done in time on ranks {waiting}")
            time.sleep(0.02)

    def _troubles(self, answers: list[Path]) -> list[str]:
        found = []
        for rank, (process, answer) in enumerate(zip(self._processes, answers, strict=True)):
            if answer.exists():
                error = json.loads(answer.read_text()).get("error")
                found += [f"rank {rank}: {error}"] if error else []
            elif process.exitcode is not None:
                found.append(f"rank {rank} died with {process.exitcode}")
        return found

    def _fail(self, message: str) -> None:
        self.close()
        tails = [f"--- rank {r}\n{self._log(r).read_text()[-3000:]}" for r in range(self.num_ranks)]
        raise RankFailure("\n".join([message, *tails]))

    def _log(self, rank: int) -> Path:
        return self._folder / f"rank-{rank}.log"


def run_apart(commands: list[list[str]], folder: Path, **variables: str) -> str:
    """Run commands in a process of their own, which is the only rank where they train, and return what they print.

    Raises:
        RankFailure: One does not end with 0.
    """
    with held_port() as port, tempfile.NamedTemporaryFile("r") as log:
        rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
        rank |= {"MASTER_PORT": str(port)}
        arguments = (commands, rank, str(folder), own_environment() | variables, log.name)
        process = STARTING.Process(target=do_commands, args=arguments)
        with only(own_environment()):
            process.start()
        process.join(LIMIT_S)
        process.kill()
        shown = log.read()
        if process.exitcode != 0:
            raise RankFailure(f"ended with {process.exitcode}: {shown[-5000:]}")
    return shown


def do_commands(
    commands: list[list[str]], rank: dict[str, str], folder: str, environment: dict[str, str], log: str
) -> None:
    """Be the process that runs commands."""
    settle_in(folder, environment, log)
    from trainer.cli import run_command

    for words in commands:
        print("$", *words)
        for name, value in rank.items():
            os.environ.pop(name, None)
            if words[0] == "train":
                os.environ[name] = value
        if code := run_command(words):
            sys.exit(int(code))


def settle_in(folder: str, environment: dict[str, str], log: str) -> None:
    """Make a forked process look like one that was started, which writes to a file."""
    os.setsid()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a killed pytest leaves no ranks
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    import torch

    torch.set_num_threads(1)


def own_environment() -> dict[str, str]:
    """Return what ranks find in their environment, wherever the tests are started."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(FOREIGN)}
    settings = {"DS_ACCELERATOR": "cpu", "DS_LOG_LEVEL": "warning", "OMP_NUM_THREADS": "1"}
    return kept | settings | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


@contextlib.contextmanager
def only(environment: dict[str, str]) -> Iterator[None]:
    """Let a process start with this environment: the one that imports reads it before it is told of a rank."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(environment)
    try:
        forkserver.ensure_running()
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def serve(requests: Connection, environment: dict[str, str], log: str) -> None:
    """Run as one rank: join the group once, then answer requests until there are no more."""
    settle_in(str(ROOT), environment, log)
    from trainer.dist.env import rank_env
    from trainer.dist.mesh import close_mesh, open_mesh, with_sequence
    from trainer.run import session, training

    mesh = open_mesh(rank_env(os.environ), timeout_s=int(LIMIT_S))
    # What is loaded now stays. Without it a collection takes 0.4 s, and every session makes two.
    gc.collect()
    gc.freeze()
    manual = training.ManualGc
    training.ManualGc = lambda every_steps: manual(every_steps=0)  # type: ignore[assignment,misc]
    # Sessions of this process share its group; everything else of session.py is used as it is.
    session.open_mesh = lambda env, timeout_s, watching=None, sharing=1: with_sequence(  # type: ignore[assignment]
        mesh, sharing, timedelta(seconds=LIMIT_S)
    )
    session.close_mesh = lambda *error: None  # type: ignore[assignment]
    with contextlib.suppress(EOFError):
        while True:
            answer_to(mesh, requests.recv())
    close_mesh()


def answer_to(mesh: Any, request: dict[str, Any]) -> None:
    """Call the function of a request and write its answer, whole."""
    print(f"== {request['function']} {request['arguments']}", flush=True)
    module, _, name = request["function"].partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
        answer = {"value": function(mesh, **request["arguments"])}
    except BaseException:
        answer = {"error": traceback.format_exc()}
    path = Path(request["answer"])
    staged = path.with_suffix(".tmp")
    staged.write_text(json.dumps(answer))
    staged.replace(path)
