"""A real SLURM cluster of two nodes on this machine: network namespaces with their own names and addresses.

Needs root and Debian's packages slurm-wlm and munge, which it installs where apt-get can. Nothing of the machine's own
configuration is touched: names are in /etc/netns, munge's key and SLURM's files in a folder of their own.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

PROGRAMS = ("slurmctld", "slurmd", "munged", "ip", "unshare")
PACKAGES = ("slurm-wlm", "munge", "iproute2", "util-linux")
NODES = ("node1", "node2")
BRIDGE = "plmpbr0"
SUBNET = "10.213.77"
LOCK = "/run/lock/palimpsest-cluster"
CTLD_PORT, SLURMD_PORT = 16817, 16818

CONFIG = """\
ClusterName=palimpsest
SlurmctldHost={host}({subnet}.1)
SlurmctldPort={ctld_port}
SlurmdPort={slurmd_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# cred_expire is also what a requeued job waits before it starts again; less than 5 is taken for 120.
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=2
SlurmdParameters=config_overrides
ReturnToService=2
# A node that does not answer for so long is down, and its jobs go back into the queue.
SlurmdTimeout=10
JobRequeue=1
MpiDefault=none
KillWait=10
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName=node[1-2] NodeAddr={subnet}.[11-12] CPUs=4 RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=120 State=UP
"""


class NoCluster(Exception):
    """Why there can be no cluster here."""


def check_possible(programs: Sequence[str] = PROGRAMS, packages: Sequence[str] = PACKAGES) -> None:
    """Install what is missing.

    Raises:
        NoCluster: Not root, or no packages.
    """
    if os.geteuid() != 0:
        raise NoCluster("a SLURM cluster in network namespaces needs root")
    if all(map(shutil.which, programs)):
        return
    if shutil.which("apt-get") is None:
        raise NoCluster(f"one of {', '.join(programs)} is missing, and there is no apt-get")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages]
    for attempt in (command, ["apt-get", "update", "-qq"], command):
        with contextlib.suppress(subprocess.SubprocessError):
            subprocess.run(attempt, env=environment, capture_output=True, timeout=180)
        if all(map(shutil.which, programs)):
            return
    raise NoCluster(f"apt-get could not install {', '.join(packages)}")


class SlurmCluster:
    """Two nodes and a controller; `env` lets SLURM's commands find them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {"SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Bring the network and the daemons up.

        Raises:
            NoCluster: A step fails; the reason is that of the step.
        """
        for name in ("state", "munge", *(f"spool-{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True)
        # munged refuses a folder of its socket or key that others could change, up to the root.
        (self.folder / "munge").chmod(0o755)
        (self.folder / "slurm.conf").write_text(
            CONFIG.format(
                host=socket.gethostname(),
                folder=self.folder,
                subnet=SUBNET,
                ctld_port=CTLD_PORT,
                slurmd_port=SLURMD_PORT,
            )
        )
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=yes\n")
        remove_network()
        self._network()
        self._munge()
        self._daemon("slurmctld", "slurmctld", "-D", "-f", self.env["SLURM_CONF"])
        for node in NODES:
            self._start_node(node)
        wait_until(self._is_up, 30, lambda: self.logs())

    def stop(self) -> None:
        """End jobs and daemons and remove the network."""
        for node in NODES:
            end_processes(node)
        for daemon in reversed(self._daemons):
            if daemon.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(daemon.pid, signal.SIGTERM)
        for daemon in self._daemons:
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(daemon.pid, signal.SIGKILL)
        remove_network()

    def ask(self, *command: str) -> str:
        """Run one of SLURM's commands and return what it prints."""
        done = subprocess.run(
            command, env={**os.environ, **self.env}, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout

    def state(self, job: int) -> str:
        """Return the state of a job; `GONE` when it left the queue."""
        text = self.ask("scontrol", "show", "job", str(job), "--oneliner")
        return next((word[9:] for word in text.split() if word.startswith("JobState=")), "GONE")

    def logs(self) -> str:
        """Return the ends of the daemons' logs."""
        files = sorted(self.folder.glob("*.log")) + sorted(self.folder.glob("*.out"))
        return "\n".join(f"--- {file.name}\n{file.read_text(errors='replace')[-2000:]}" for file in files)

    def unplug(self, node: str) -> None:
        """Take a node off the network; what runs there goes on, and nobody hears of it."""
        run("ip", "-n", node, "link", "set", "eth0", "down")

    def plug(self, node: str) -> None:
        """Undo `unplug`."""
        run("ip", "-n", node, "link", "set", "eth0", "up")
        run("ip", "-n", node, "route", "replace", "default", "via", f"{SUBNET}.1")

    def node_state(self, node: str) -> str:
        """Return what the controller thinks of a node, such as IDLE, or DOWN+NOT_RESPONDING."""
        text = self.ask("scontrol", "show", "node", node, "--oneliner")
        return next(word[6:] for word in text.split() if word.startswith("State="))

    def in_node(self, node: str, *command: str) -> list[str]:
        """Return a command line that runs inside a node's network."""
        return ["ip", "netns", "exec", node, *command]

    def _network(self) -> None:
        run("ip", "link", "add", BRIDGE, "type", "bridge")
        run("ip", "addr", "add", f"{SUBNET}.1/24", "dev", BRIDGE)
        run("ip", "link", "set", BRIDGE, "up")
        names = "".join(f"{SUBNET}.{11 + index} {node}\n" for index, node in enumerate(NODES))
        own = f"127.0.0.1 localhost\n{SUBNET}.1 {socket.gethostname()}\n{names}"
        for index, node in enumerate(NODES):
            # `ip netns exec` puts these files over those in /etc.
            (Path("/etc/netns") / node).mkdir(parents=True)
            (Path("/etc/netns") / node / "hosts").write_text(own)
            # No name server: the rendezvous asks for IPv6 addresses as well, and would wait for an answer.
            (Path("/etc/netns") / node / "nsswitch.conf").write_text("hosts: files\n")
            run("ip", "netns", "add", node)
            run("ip", "link", "add", f"plmp{index}", "type", "veth", "peer", "name", "eth0", "netns", node)
            run("ip", "link", "set", f"plmp{index}", "master", BRIDGE, "up")
            run("ip", "-n", node, "addr", "add", f"{SUBNET}.{11 + index}/24", "dev", "eth0")
            run("ip", "-n", node, "link", "set", "eth0", "up")
            run("ip", "-n", node, "link", "set", "lo", "up")
            run("ip", "-n", node, "route", "add", "default", "via", f"{SUBNET}.1")

    def _munge(self) -> None:
        munge = self.folder / "munge"
        (munge / "key").write_bytes(os.urandom(128))
        (munge / "key").chmod(0o600)
        own = [f"--{name}-file={munge / name}" for name in ("key", "pid", "log", "seed")]
        self._daemon("munged", "munged", "--foreground", "--force", f"--socket={munge / 'socket'}", *own)
        wait_until((munge / "socket").exists, 10, self.logs)

    def _start_node(self, node: str) -> None:
        slurmd = f"exec slurmd -D -N {node} -f {self.env['SLURM_CONF']}"
        script = f"mount -t tmpfs tmpfs /sys/fs/cgroup; hostname {node}; {slurmd}"
        self._daemon(f"slurmd-{node}", *self.in_node(node, "unshare", "--uts", "sh", "-c", script))

    def _daemon(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.out").open("wb") as output:
            self._daemons.append(
                subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=end_with_parent,
                    env={**os.environ, **self.env},
                )
            )

    def _is_up(self) -> bool:
        if any(daemon.poll() is not None for daemon in self._daemons):
            raise NoCluster(f"a daemon of SLURM ended:\n{self.logs()}")
        done = subprocess.run(
            ["sinfo", "--noheader", "--format=%D %T"],
            env={**os.environ, **self.env},
            capture_output=True,
            text=True,
        )
        return done.stdout.split() == ["2", "idle"]


def end_with_parent() -> None:
    """Ask Linux to kill this process when the test session is killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def run(*command: str) -> None:
    """Run a command that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    if done.returncode:
        raise NoCluster(f"{' '.join(command)}: {done.stderr.strip()}")


def end_processes(node: str) -> None:
    """Kill all that runs in a node's network: its jobs outlive slurmd."""
    for _ in range(3):
        listed = subprocess.run(["ip", "netns", "pids", node], capture_output=True, text=True)
        for pid in listed.stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.1)


def remove_network() -> None:
    """Remove what an earlier session may have left."""
    for node in NODES:
        end_processes(node)
        subprocess.run(["ip", "netns", "delete", node], capture_output=True)
        shutil.rmtree(Path("/etc/netns") / node, ignore_errors=True)
    for link in (BRIDGE, *(f"plmp{index}" for index in range(len(NODES)))):
        subprocess.run(["ip", "link", "delete", link], capture_output=True)


def wait_until(is_done: Callable[[], bool], timeout_s: float, explain: Callable[[], str] = str) -> None:
    """Wait for a condition, or fail with an explanation."""
    end = time.monotonic() + timeout_s
    while not is_done():
        if time.monotonic() > end:
            raise NoCluster(f"not within {timeout_s} s:\n{explain()}")
        time.sleep(0.2)


@contextlib.contextmanager
def two_nodes(folder: Path) -> Iterator[SlurmCluster]:
    """Bring a cluster up for as long as the block runs; one at a time on a machine, whose network it changes."""
    check_possible()
    with Path(LOCK).open("w") as lock:
        wait_until(lambda: is_ours(lock), 300, lambda: "another session has the cluster")
        cluster = SlurmCluster(folder)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


def is_ours(lock: TextIO) -> bool:
    """Try to take the lock."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
