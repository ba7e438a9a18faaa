"""Starting the ranks of a hostfile's nodes through the deepspeed launcher, and passing signals on to them."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped, unused-ignore]

from trainer.config.snapshot import write_atomic
from trainer.errors import Exit, TopologyError
from trainer.runtime.job import EXIT_CODE, LOG_DIR, VARIABLES, as_shells_tell, handed_over
from trainer.runtime.signals import handed_on
from trainer.runtime.tied import tied
from trainer.start.local import why_ended

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
_NEEDS = {"pdsh": "pdsh", "openmpi": "mpirun", "slurm": "srun"}
_SSH = ("ssh", "-o", "BatchMode=yes")
_CONNECT_S = 10
_PLAIN = re.compile(r"[\w@%+=:./-]*", re.ASCII)
"""What DeepSpeed's launcher, srun's --export and a shell leave as it is."""
_BEFORE_PYTHON = ("PYTHON", "LD_", "PATH", "DS_", "NCCL_", "TORCH_NCCL_", "OMPI_", "UCX_")
"""Variables that are read before a rank can read a file: they stand in command lines, which others can see."""
_HANDED_ON = ("MLFLOW",)
"""What DeepSpeed's launcher hands on by itself, on a command line; among it are passwords."""


@dataclass(frozen=True, slots=True)
class Hosts:
    """The nodes of a hostfile, and how DeepSpeed's launcher reaches them."""

    names: Sequence[str]
    slots: int
    """Ranks of each."""
    file: Path
    runner: str
    """pdsh, openmpi or slurm."""
    master_port: int
    cpus_per_rank: int | None = None

    @property
    def num_ranks(self) -> int:
        """Return the ranks of all hosts."""
        return self.slots * len(self.names)

    def check(self, allocated: Sequence[str] | None) -> None:
        """Find out whether the hosts can be reached.

        Args:
            allocated: The nodes that SLURM has given out to this shell; None outside its jobs.
        Raises:
            TopologyError: A program is missing, ssh does not reach a host, or SLURM has not given out these hosts.
        """
        program = _NEEDS[self.runner]
        if shutil.which(program) is None:
            raise TopologyError(
                f"`cluster.deepspeed_runner` must be one whose program is here, but {self.runner} needs {program}, "
                "which is missing. Install it, or choose another."
            )
        if self.runner == "slurm":
            self._check_allocation(allocated)
        else:
            self._check_ssh()

    def check_words(self, run_dir: Path) -> None:
        """Find out whether what pdsh hands to a shell of the hosts is read there as it stands here.

        Raises:
            TopologyError: DeepSpeed writes one of these into a line of shell, without quotes.
        """
        if self.runner != "pdsh":
            return
        told = {"run_dir": run_dir, "working directory": Path.cwd(), "Python": sys.executable}
        for key, place in told.items():
            if not _PLAIN.fullmatch(str(place)):
                raise TopologyError(
                    f"`{key}` must be of letters, digits and @%+=:./- with cluster.deepspeed_runner=pdsh, but is "
                    f"{str(place)!r} instead: DeepSpeed writes it into a line of shell. Choose another."
                )

    def _check_allocation(self, allocated: Sequence[str] | None) -> None:
        if allocated is None:
            raise TopologyError(
                "`cluster.deepspeed_runner` must be pdsh or openmpi outside of SLURM's jobs, but is slurm instead. "
                f"Start the same under salloc --nodes={len(self.names)} --ntasks-per-node={self.slots}, or hand the "
                "run in with palimpsest submit cluster=slurm."
            )
        if set(allocated) != set(self.names):
            raise TopologyError(
                f"`cluster.hostfile` must name the nodes of this SLURM job, {', '.join(allocated)}, but {self.file} "
                f"names {', '.join(self.names)} instead. Write it from: scontrol show hostnames"
            )

    def _check_ssh(self) -> None:
        def problem(host: str) -> str | None:
            command = [*_SSH, "-o", f"ConnectTimeout={_CONNECT_S}", host, "true"]
            try:
                done = subprocess.run(
                    command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=3 * _CONNECT_S
                )
            except FileNotFoundError:
                return "there is no ssh here"
            except subprocess.TimeoutExpired:
                return f"no answer in {3 * _CONNECT_S} s"
            said = done.stderr.strip().splitlines()
            return None if done.returncode == 0 else (said[-1] if said else f"exit code {done.returncode}")

        with ThreadPoolExecutor(min(len(self.names), 64)) as pool:
            found = [
                f"{host} ({why})"
                for host, why in zip(self.names, pool.map(problem, self.names), strict=True)
                if why
            ]
        if found:
            raise TopologyError(
                "`cluster.hostfile` must name hosts that ssh reaches without a password, but does not reach "
                f"{', '.join(found)}. Try: ssh {found[0].split()[0]} true"
            )

    def command(self, command: str, config_file: Path, variables: Mapping[str, str]) -> list[str]:
        """Return the launcher's command line, which a person could type as well.

        Args:
            variables: What ranks find in their environment.
        """
        words = [
            *(sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", str(self.file)),
            *("--launcher", self.runner, "--no_ssh_check", "--force_multi"),
            *("--master_addr", self.names[0], "--master_port", str(self.master_port)),
            *("--no_local_rank", "--log_level", "critical"),
        ]
        run = ["trainer", command, "--config", str(config_file)]
        match self.runner:
            case "openmpi":
                # This runner hands variables on in quotes that reach the rank: NCCL_SOCKET_IFNAME="^docker0".
                given = {**variables, "MASTER_ADDR": self.names[0], "MASTER_PORT": str(self.master_port)}
                pairs = [f"{name}={value}" for name, value in given.items()]
                return [*words, "--no_python", "env", *pairs, sys.executable, "-u", "-m", *run]
            case "slurm":
                # A rank that dies takes along the others, who would wait for it; each sees all GPUs of its node.
                srun = [
                    f"--nodes={len(self.names)}",
                    f"--ntasks-per-node={self.slots}",
                    "--kill-on-bad-exit=1",
                ]
                srun += ["--gpu-bind=none", "--label", f"--chdir={Path.cwd()}"]
                if self.cpus_per_rank:
                    srun.append(f"--cpus-per-task={self.cpus_per_rank}")
                # This runner forgets --module: it starts `python -u SCRIPT`. Python's own -m will do for the script.
                return [*words, f"--launcher_args={shlex.join(srun)}", "--", "-m", *run]
            case _:
                return [*words, "--module", *run]

    def environment_file(self, variables: Mapping[str, str]) -> str:
        """Return DeepSpeed's file of variables: what its runners for pdsh and slurm hand on.

        Raises:
            TopologyError: SLURM would cut a value.
        """
        if self.runner == "slurm":
            # SLURM itself puts rank 0 on the first node of its list, and ranks look it up there.
            variables = {**variables, "MASTER_PORT": str(self.master_port)}
            for name, value in variables.items():
                if not _PLAIN.fullmatch(value):
                    raise TopologyError(
                        f"`{name}` must be of letters, digits and @%+=:./- with cluster.deepspeed_runner=slurm, but is "
                        f"'{value}' instead: DeepSpeed hands it on in quotes, or srun ends it at a comma. Use "
                        "palimpsest submit."
                    )
        return "".join(f"{name}={self._in_file(value)}\n" for name, value in variables.items())

    def _in_file(self, value: str) -> str:
        """Return a value as DeepSpeed's file has it: in the quotes that DeepSpeed puts around it, a shell reads it."""
        return re.sub(r'([\\"$`])', r"\\\1", value) if self.runner == "pdsh" else value


def start_hosts(
    command: str, config_file: Path, hosts: Hosts, variables: Mapping[str, str], logs: Path
) -> int:
    """Run a command on all hosts with a frozen configuration; return the exit code of its ranks.

    A signal to this process reaches ranks, and all then stop at the same step; checks of the nodes end at once.

    Args:
        variables: What ranks find in their environment; DeepSpeed hands on little else. Only those that must be there
            before a rank can read a file stand on command lines.
        logs: The attempt's folder of logs.
    """
    hosts.check_words(config_file.parent)
    secret = {name: value for name, value in os.environ.items() if name.startswith(_HANDED_ON)}
    secret |= {name: value for name, value in variables.items() if not name.startswith(_BEFORE_PYTHON)}
    with handed_over(logs, secret) as file:
        shown = {name: value for name, value in variables.items() if name not in secret}
        return _start_hosts(command, config_file, hosts, {**shown, VARIABLES: str(file)}, logs)


def _start_hosts(
    command: str, config_file: Path, hosts: Hosts, variables: Mapping[str, str], logs: Path
) -> int:
    """Run DeepSpeed's launcher, tell signals to the ranks, and return their exit code."""
    # DeepSpeed puts the working directory into PYTHONPATH, which the file changes again.
    path = {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.environ.get("PYTHONPATH") or os.devnull}
    variables = {**path, **variables, LOG_DIR: str(logs)}
    environment_file = config_file.parent / "environment"
    write_atomic(environment_file, hosts.environment_file(variables), is_private=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_HANDED_ON)}
    # DeepSpeed looks for this name below two folders; a whole path is found from both.
    environment["DS_ENV_FILE"] = os.devnull if hosts.runner == "openmpi" else str(environment_file)
    is_slurm = hosts.runner == "slurm"
    if is_slurm:
        # SLURM 22.05 prefers what is in the environment to what DeepSpeed hands on.
        environment |= variables

    def tell() -> None:
        if command != "train":
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        elif hosts.runner == "pdsh":
            subprocess.run(signal_command(command, config_file, hosts.names[0]), stdin=subprocess.DEVNULL)
        else:
            # mpirun and srun hand it on to all ranks.
            with contextlib.suppress(psutil.Error):
                for child in psutil.Process(process.pid).children():
                    child.send_signal(signal.SIGUSR1)

    with _told_when_asked(tell) as (begin, is_asked):
        process = subprocess.Popen(
            tied(hosts.command(command, config_file, variables), signal.SIGTERM),
            env=environment,
            # So the directory in PYTHONPATH is this one, which holds no modules; srun is told where ranks run.
            cwd=config_file.parent if is_slurm else None,
            start_new_session=True,
        )
        begin()
        code = process.wait()
    if code < 0:  # it was killed: what it had started, pdsh, mpirun or srun, is in its session
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
    if is_asked() and command != "train":
        return Exit.interrupted
    code = code_of_ranks(command, code, logs)
    if (why := why_ended(as_shells_tell(code))) is not None:
        print(f"Error: {why}", file=sys.stderr)
    return code


def code_of_ranks(command: str, launcher: int, logs: Path) -> int:
    """Return the exit code of the ranks of a command, by what they left behind and how their launcher ended.

    DeepSpeed's launcher ends with 0 when what it had started was killed, and mpirun with 1 after any failure; a
    training that is done has said so.
    """
    told = logs / EXIT_CODE
    if told.exists():
        return int(told.read_text(encoding="utf-8"))
    return Exit.died if launcher < 0 or (launcher == 0 and command == "train") else launcher


@contextlib.contextmanager
def _told_when_asked(tell: Callable[[], None]) -> Iterator[tuple[Callable[[], None], Callable[[], bool]]]:
    """Call `tell` from the first signal on, again and again: ranks that do not run yet hear nothing.

    Yields what must be called once there is somebody to tell, and what tells whether a signal has come.
    """
    is_asked, is_over = threading.Event(), threading.Event()

    def repeat() -> None:
        is_asked.wait()
        pause_s = 1.0
        while not is_over.is_set():
            tell()
            is_over.wait(pause_s)
            pause_s = min(2 * pause_s, 10.0)

    threading.Thread(target=repeat, daemon=True).start()
    with handed_on(FORWARDED, lambda number: is_asked.set()) as begin:
        try:
            yield begin, is_asked.is_set
        finally:
            is_over.set()


def signal_command(command: str, config_file: Path, host: str) -> list[str]:
    """Return what tells the ranks of a host to stop, where pdsh started them.

    SIGTERM would meet DeepSpeed's launcher first, which kills its ranks; its own command line differs from
    theirs in the words before `trainer`.
    """
    pattern = f"-m trainer {command} --config {re.escape(str(config_file))}"
    return [*_SSH, host, f"pkill -USR1 -f -- {shlex.quote(pattern)}"]
