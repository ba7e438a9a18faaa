"""Starting the ranks of this machine and passing signals on to them."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping

import psutil  # type: ignore[import-untyped, unused-ignore]

from trainer.runtime.job import as_shells_tell
from trainer.runtime.signals import handed_on
from trainer.runtime.tied import tied

HIDDEN = "-1"
"""CUDA shows no device whose name comes after one that is none."""


def start_local(arguments: list[str], num_ranks: int, master_port: int) -> int:
    """Start ranks of this machine through the deepspeed launcher and return its exit code."""
    environment = dict(os.environ)
    if environment.get("DS_ACCELERATOR") == "cpu":
        environment.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // num_ranks, 1)))
    # The part of the launcher that runs on each node. The one before it, `deepspeed`, would only read a hostfile, and
    # takes the first GPUs of the machine where CUDA_VISIBLE_DEVICES names others.
    command = [
        *(sys.executable, "-u", "-m", "deepspeed.launcher.launch"),
        *("--world_info", world_info(num_ranks, environment), "--master_addr", "127.0.0.1"),
    ]
    with held_port(master_port) as port:
        command += ["--master_port", str(port), "--no_local_rank", "--log_level", "critical"]
        return _run_launcher([*command, "--module", "trainer", *arguments], environment)


def _run_launcher(command: list[str], environment: Mapping[str, str]) -> int:
    """Run DeepSpeed's launcher, tell signals to its ranks, and return its exit code."""

    def forward(number: int) -> None:
        ranks = rank_processes(process.pid)
        for rank in ranks:
            with contextlib.suppress(psutil.Error):
                rank.send_signal(number)
        if not ranks:
            os.killpg(process.pid, number)

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
    with handed_on(numbers, forward) as begin:
        words = tied(command, signal.SIGKILL, launches_ranks=True)
        process = subprocess.Popen(words, env=environment, start_new_session=True)
        begin()
        code = as_shells_tell(process.wait())
    if (why := why_ended(code)) is not None:
        print(f"Error: {why}", file=sys.stderr)
    return code


def why_ended(code: int) -> str | None:
    """Return what ended ranks that could not say it themselves; None where they have.

    DeepSpeed's launcher is told to be silent: it calls every exit code but 0 an error, that of a clean stop too.

    Args:
        code: As shells tell it.
    """
    if code == 128 + signal.SIGKILL:
        return (
            "the ranks were killed by SIGKILL, as the system does where memory is short. The same command goes on from "
            "the last checkpoint."
        )
    told = [128 + number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    if code <= 128 or code in told or code - 128 not in {*signal.Signals}:
        return None
    return (
        f"a rank was ended by {signal.Signals(code - 128).name}. What it said last stands above, and in the run's "
        "folder of logs. The same command goes on from the last checkpoint."
    )


def start_plain(arguments: list[str], num_ranks: int, master_port: int) -> int:
    """Start ranks of this machine without a launcher, which loads DeepSpeed first; return the highest exit code."""
    with held_port(master_port) as port:
        shared = {"WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        ranks = [
            subprocess.Popen(
                tied([sys.executable, "-m", "trainer", *arguments], signal.SIGKILL),
                env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(num_ranks)
        ]
        try:
            codes = [rank.wait() for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
    return max(map(as_shells_tell, codes))


def world_info(num_ranks: int, environment: Mapping[str, str]) -> str:
    """Return what DeepSpeed's launcher is told of this machine: which device each rank has, by number or UUID.

    The launcher shows ranks what it is told here and nothing else: a GPU that was hidden stays so.
    """
    told = environment.get("CUDA_VISIBLE_DEVICES")
    visible = [word.strip() for word in (told or "").split(",") if word.strip()]
    hidden = [HIDDEN] * (num_ranks - len(visible))
    devices = [*range(num_ranks)] if told is None else [*visible[:num_ranks], *hidden]
    return base64.urlsafe_b64encode(json.dumps({"localhost": devices}).encode()).decode()


@contextlib.contextmanager
def only_rank(master_port: int) -> Iterator[None]:
    """Make this process the one rank: a launcher would load torch and DeepSpeed twice more before it begins."""
    before = dict(os.environ)
    with held_port(master_port) as port:
        os.environ.update({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": str(port)})
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


def rank_processes(launcher_pid: int) -> list[psutil.Process]:
    """Return the rank processes below a launcher.

    Signals go to them directly: DeepSpeed's launcher kills its ranks on SIGTERM instead of passing it on.
    """
    try:
        children = psutil.Process(launcher_pid).children(recursive=True)
    except psutil.Error:
        return []
    ranks = []
    for child in children:
        # One that ends meanwhile, such as a git of a rank, does not hide the others.
        with contextlib.suppress(psutil.Error):
            if child.environ().get("LOCAL_RANK") is not None:
                ranks.append(child)
    return ranks


def free_port() -> int:
    """Return a port of this machine that nobody listens on, now; see `held_port`."""
    with held_port() as port:
        return port


@contextlib.contextmanager
def held_port(port: int = 0) -> Iterator[int]:
    """Yield a port, or for 0 one that the kernel gives to nobody else inside: ranks take seconds to listen on it.

    A socket that is bound and does not listen keeps it from those who ask for any port, and not from torch's store,
    which asks for this one with SO_REUSEADDR, as the socket has it.
    """
    if port:
        yield port
        return
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("", 0))
        yield int(holder.getsockname()[1])
