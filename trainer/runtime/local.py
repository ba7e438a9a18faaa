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
from types import FrameType

import psutil  # type: ignore[import-untyped, unused-ignore]


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
        *("--master_port", str(master_port or free_port()), "--no_local_rank", "--log_level", "warning"),
        *("--module", "trainer", *arguments),
    ]
    process = subprocess.Popen(command, env=environment, start_new_session=True)

    def forward(number: int, frame: FrameType | None) -> None:
        ranks = rank_processes(process.pid)
        for rank in ranks:
            rank.send_signal(number)
        if not ranks:
            os.killpg(process.pid, number)

    previous = {
        s: signal.signal(s, forward) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
    }
    try:
        code = process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def start_plain(arguments: list[str], num_ranks: int, master_port: int) -> int:
    """Start ranks of this machine without a launcher, which loads DeepSpeed first; return the highest exit code."""
    shared = {"WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1"}
    port = str(master_port or free_port())
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "trainer", *arguments],
            env={**os.environ, **shared, "MASTER_PORT": port, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(num_ranks)
    ]
    try:
        codes = [rank.wait() for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return max(code if code >= 0 else 128 - code for code in codes)


def world_info(num_ranks: int, environment: Mapping[str, str]) -> str:
    """Return what DeepSpeed's launcher is told of this machine: which device each rank has, by number or UUID."""
    visible = [
        word.strip() for word in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if word.strip()
    ]
    devices: list[int] | list[str] = visible[:num_ranks] if len(visible) >= num_ranks else [*range(num_ranks)]
    return base64.urlsafe_b64encode(json.dumps({"localhost": devices}).encode()).decode()


@contextlib.contextmanager
def only_rank(master_port: int) -> Iterator[None]:
    """Make this process the one rank: a launcher would load torch and DeepSpeed twice more before it begins."""
    before = dict(os.environ)
    port = str(master_port or free_port())
    os.environ.update({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": port})
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
        return [child for child in children if child.environ().get("LOCAL_RANK") is not None]
    except psutil.Error:
        return []


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
