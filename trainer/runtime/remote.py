"""Starting the ranks of a hostfile's nodes over ssh, through the deepspeed launcher, and passing signals on to them."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from trainer.errors import TopologyError

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
_NEEDS = {"pdsh": "pdsh", "openmpi": "ompi_info"}


def start_hosts(
    command: str,
    config_file: Path,
    hosts: Sequence[str],
    hostfile: Path,
    runner: str,
    master_port: int,
    variables: Mapping[str, str],
) -> int:
    """Run a command on all hosts with a frozen configuration; return the launcher's exit code.

    A signal to this process reaches one rank of the first host, and all ranks then stop at the same step.

    Args:
        variables: What ranks find in their environment; DeepSpeed hands on little else.

    Raises:
        TopologyError: DeepSpeed's runner needs a program that is not here.
    """
    program = _NEEDS.get(runner, "ssh")
    if shutil.which(program) is None:
        raise TopologyError(
            f"`cluster.deepspeed_runner` must be one whose program is here, but {runner} needs {program}, which is "
            "missing. Install it, or choose another."
        )
    environment_file = config_file.parent / "environment"
    environment_file.write_text(
        "".join(f"{name}={value}\n" for name, value in variables.items()), encoding="utf-8"
    )
    words = hosts_command(command, config_file, hosts[0], hostfile, runner, master_port)
    # DeepSpeed looks for this name below two folders; a whole path is found from both.
    environment = {**os.environ, "DS_ENV_FILE": str(environment_file)}
    process = subprocess.Popen(words, env=environment, start_new_session=True)

    def forward(number: int, frame: FrameType | None) -> None:
        subprocess.Popen(signal_command(command, config_file, hosts[0]), stdin=subprocess.DEVNULL)

    previous = {number: signal.signal(number, forward) for number in FORWARDED}
    try:
        code = process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def hosts_command(
    command: str, config_file: Path, first: str, hostfile: Path, runner: str, master_port: int
) -> list[str]:
    """Return the launcher's command line, which a person could type as well."""
    return [
        *(
            sys.executable,
            "-m",
            "deepspeed.launcher.runner",
            "--hostfile",
            str(hostfile),
            "--launcher",
            runner,
        ),
        *("--force_multi", "--master_addr", first, "--master_port", str(master_port)),
        *("--no_local_rank", "--log_level", "warning"),
        *("--module", "trainer", command, "--config", str(config_file)),
    ]


def signal_command(command: str, config_file: Path, host: str) -> list[str]:
    """Return what tells the ranks of a host to stop.

    SIGTERM would meet DeepSpeed's launcher first, which kills its ranks; its own command line differs from
    theirs in the words before `trainer`.
    """
    pattern = f"-m trainer {command} --config {config_file}"
    return ["ssh", "-o", "BatchMode=yes", host, f"pkill -USR1 -f -- {shlex.quote(pattern)}"]
