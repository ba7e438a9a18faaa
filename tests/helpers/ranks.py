"""Rank processes for tests: started once, then handed one function after the other.

Importing DeepSpeed takes most of a short test, so a `Ranks` pool keeps its processes and their process
group; every function builds its own model and engine. A rank that fails, dies or hangs takes the whole
pool with it, and the next call starts a fresh one.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.helpers.wait import LIMIT_S
from trainer.start.local import held_port

ROOT = Path(__file__).resolve().parents[2]
FOREIGN = ("OMPI_", "PMI_", "SLURM_", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_", "TORCHELASTIC_")


class RankFailure(AssertionError):
    """A rank raised, died or did not answer in time; the message holds what it said."""


class Ranks:
    """A pool of rank processes on this machine (gloo, CPU)."""

    def __init__(self, num_ranks: int, folder: Path) -> None:
        self.num_ranks = num_ranks
        self._folder = folder
        self._processes: list[subprocess.Popen[str]] = []
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
        for process, answer in zip(self._processes, answers, strict=True):
            request = {"function": name, "arguments": arguments, "answer": str(answer)}
            assert process.stdin is not None
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        self._wait(answers, name, time.monotonic() + timeout_s)
        return [json.loads(answer.read_text())["value"] for answer in answers]

    def close(self) -> None:
        """Kill every rank."""
        for process in self._processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._processes = []
        self._held.close()

    def _start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        base = {key: value for key, value in os.environ.items() if not key.startswith(FOREIGN)}
        base |= {
            "WORLD_SIZE": str(self.num_ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self._held.enter_context(held_port())),
            "DS_ACCELERATOR": "cpu",
            "DS_LOG_LEVEL": "warning",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "HF_HUB_OFFLINE": "1",
        }
        for rank in range(self.num_ranks):
            with self._log(rank).open("w") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", "tests.helpers.ranks"],
                    env=base | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    text=True,
                    cwd=ROOT,
                    start_new_session=True,
                )
            self._processes.append(process)

    def _wait(self, answers: list[Path], name: str, deadline: float) -> None:
        while True:
            if self._troubles(answers):
                time.sleep(0.5)  # one failing rank makes the others fail: show all of them
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
            elif process.poll() is not None:
                found.append(f"rank {rank} died with {process.returncode}")
        return found

    def _fail(self, message: str) -> None:
        self.close()
        tails = [f"--- rank {r}\n{self._log(r).read_text()[-3000:]}" for r in range(self.num_ranks)]
        raise RankFailure("\n".join([message, *tails]))

    def _log(self, rank: int) -> Path:
        return self._folder / f"rank-{rank}.log"


def run_ranks(
    function: Callable[..., Any],
    num_ranks: int,
    arguments: dict[str, Any],
    folder: Path,
    timeout_s: float = LIMIT_S,
) -> list[Any]:
    """Start ranks for one function and end them; return each rank's JSON value."""
    ranks = Ranks(num_ranks, folder)
    try:
        return ranks.run(function, timeout_s, **arguments)
    finally:
        ranks.close()


def serve() -> None:
    """Run as one rank: join the group once, then answer requests until stdin closes."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a killed pytest leaves no ranks
    from trainer.model.lean import import_models

    import_models()
    import peft  # noqa: F401
    import torch
    from transformers.models.llama import modeling_llama  # noqa: F401

    from trainer.dist.env import rank_env
    from trainer.dist.mesh import close_mesh, open_mesh
    from trainer.run import session, training

    torch.set_num_threads(1)
    mesh = open_mesh(rank_env(os.environ), timeout_s=int(LIMIT_S))
    # What is loaded now stays. Without it a collection takes 0.4 s, and every session makes two.
    gc.collect()
    gc.freeze()
    manual = training.ManualGc
    training.ManualGc = lambda every_steps: manual(every_steps=0)  # type: ignore[assignment,misc]
    # Sessions of this process share its group; everything else of session.py is used as it is.
    session.open_mesh = lambda env, timeout_s: mesh  # type: ignore[assignment]
    session.close_mesh = lambda *error: None  # type: ignore[assignment]
    for line in sys.stdin:
        request = json.loads(line)
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
    close_mesh()


if __name__ == "__main__":
    serve()
