"""A real SLURM cluster of two nodes on this machine: network namespaces with their own names and addresses.

Several test sessions may each have one at the same time: every cluster has a number, and a network of that number.
Needs root and Debian's packages slurm-wlm and munge, which it installs where apt-get can. Nothing of the machine's own
configuration is touched: names are in /etc/netns, munge's key and SLURM's files in a folder of their own.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import resource
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from tests.helpers.debian import NotInstalled, install
from tests.helpers.wait import LIMIT_S, wait_until

PROGRAMS = ("slurmctld", "slurmd", "munged", "ip", "unshare")
PACKAGES = ("slurm-wlm", "munge", "iproute2", "util-linux")
NODES = ("node1", "node2")
MAX_CLUSTERS = 8
LOCK = "/run/lock/palimpsest-cluster"

CONFIG = """\
ClusterName=palimpsest
SlurmctldHost={host}({subnet}.1)
SlurmctldPort={port}
SlurmdPort=16818
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
# Limits that no busy machine meets: of a node that does not answer, of a message, of the start and the end of a job.
SlurmdTimeout=600
MessageTimeout=60
TCPTimeout=60
BatchStartTimeout=300
UnkillableStepTimeout=300
KillWait=30
# Tests ask for jobs that ended long ago, and count them.
MinJobAge=86400
JobRequeue=1
MpiDefault=none
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
    try:
        install(programs, packages)
    except NotInstalled as error:
        raise NoCluster(str(error)) from error


class DaemonCrashed(AssertionError):
    """A daemon of SLURM's own died; what ran then tells nothing of ours."""


class SlurmCluster:
    """Two nodes and a controller; `env` lets SLURM's commands find them."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, self.number = folder, number
        self.subnet = f"10.213.{77 + number}"
        self.addresses = [f"{self.subnet}.{11 + index}" for index in range(len(NODES))]
        self._bridge = f"plmpbr{number}"
        self._links = [f"plmp{number}n{index}" for index in range(len(NODES))]
        self.env = {"SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

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
                subnet=self.subnet,
                # The controller is in the machine's own network, beside those of other clusters.
                port=16820 + self.number,
            )
        )
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=yes\n")
        self._remove_network()
        self._network()
        self._munge()
        self._daemon("slurmctld", "slurmctld", "-D", "-f", self.env["SLURM_CONF"])
        for node in NODES:
            self._start_node(node)
        wait_until(self._is_up, "both nodes idle", self.logs)

    def stop(self) -> None:
        """End jobs and daemons and remove the network."""
        self._end_processes()
        daemons = [*self._daemons.values()]
        for daemon in reversed(daemons):
            if daemon.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(daemon.pid, signal.SIGTERM)
        for daemon in daemons:
            try:
                daemon.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(daemon.pid, signal.SIGKILL)
                daemon.wait()
        self._remove_network()

    def ask(self, *command: str) -> str:
        """Run one of SLURM's commands and return what it prints.

        Raises:
            DaemonCrashed: One has.
        """
        if self.crashed:
            raise DaemonCrashed(f"{', '.join(self.crashed)} crashed\n{self.logs()}")
        done = subprocess.run(
            command, env={**os.environ, **self.env}, capture_output=True, text=True, timeout=LIMIT_S
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout

    @property
    def crashed(self) -> list[str]:
        """Return the daemons that died by a signal that nobody here sends: slurmd 22.05 did once, in malloc."""
        codes = {name: daemon.poll() for name, daemon in self._daemons.items()}
        return [name for name, code in codes.items() if code in (-signal.SIGSEGV, -signal.SIGABRT)]

    def crash(self, name: str) -> None:
        """Let a daemon die so."""
        self._daemons[name].send_signal(signal.SIGSEGV)
        self._daemons[name].wait(LIMIT_S)

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
        run("ip", "-n", self._netns(node), "link", "set", "eth0", "down")

    def plug(self, node: str) -> None:
        """Undo `unplug`."""
        run("ip", "-n", self._netns(node), "link", "set", "eth0", "up")
        run("ip", "-n", self._netns(node), "route", "replace", "default", "via", f"{self.subnet}.1")

    def lose(self, node: str) -> None:
        """Tell the controller that a node is gone, as it finds by itself after SlurmdTimeout."""
        self.ask("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=lost")

    def find(self, node: str) -> None:
        """Undo `lose`."""
        self.ask("scontrol", "update", f"NodeName={node}", "State=RESUME")

    def node_state(self, node: str) -> str:
        """Return what the controller thinks of a node, such as IDLE, or DOWN+NOT_RESPONDING."""
        text = self.ask("scontrol", "show", "node", node, "--oneliner")
        return next(word[6:] for word in text.split() if word.startswith("State="))

    def in_node(self, node: str, *command: str) -> list[str]:
        """Return a command line that runs inside a node's network."""
        return ["ip", "netns", "exec", self._netns(node), *command]

    def _netns(self, node: str) -> str:
        return f"plmp{self.number}-{node}"

    def _network(self) -> None:
        run("ip", "link", "add", self._bridge, "type", "bridge")
        run("ip", "addr", "add", f"{self.subnet}.1/24", "dev", self._bridge)
        run("ip", "link", "set", self._bridge, "up")
        names = "".join(f"{address} {node}\n" for address, node in zip(self.addresses, NODES, strict=True))
        own = f"127.0.0.1 localhost\n{self.subnet}.1 {socket.gethostname()}\n{names}"
        for node, address, link in zip(NODES, self.addresses, self._links, strict=True):
            space = self._netns(node)
            # `ip netns exec` puts these files over those in /etc.
            (Path("/etc/netns") / space).mkdir(parents=True)
            (Path("/etc/netns") / space / "hosts").write_text(own)
            # No name server: the rendezvous asks for IPv6 addresses as well, and would wait for an answer.
            (Path("/etc/netns") / space / "nsswitch.conf").write_text("hosts: files\n")
            run("ip", "netns", "add", space)
            run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", space)
            run("ip", "link", "set", link, "master", self._bridge, "up")
            run("ip", "-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
            run("ip", "-n", space, "link", "set", "eth0", "up")
            run("ip", "-n", space, "link", "set", "lo", "up")
            run("ip", "-n", space, "route", "add", "default", "via", f"{self.subnet}.1")

    def _remove_network(self) -> None:
        """Remove it, or what an earlier session may have left of it."""
        self._end_processes()
        for node in NODES:
            subprocess.run(["ip", "netns", "delete", self._netns(node)], capture_output=True)
            shutil.rmtree(Path("/etc/netns") / self._netns(node), ignore_errors=True)
        for link in (self._bridge, *self._links):
            subprocess.run(["ip", "link", "delete", link], capture_output=True)

    def _end_processes(self) -> None:
        """Kill all that runs in the nodes' networks: jobs outlive slurmd."""
        for node in NODES:
            listed = ["ip", "netns", "pids", self._netns(node)]
            for _ in range(100):
                pids = subprocess.run(listed, capture_output=True, text=True).stdout.split()
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
                if not pids:
                    break
                time.sleep(0.1)

    def _munge(self) -> None:
        munge = self.folder / "munge"
        (munge / "key").write_bytes(os.urandom(128))
        (munge / "key").chmod(0o600)
        own = [f"--{name}-file={munge / name}" for name in ("key", "pid", "log", "seed")]
        self._daemon("munged", "munged", "--foreground", "--force", f"--socket={munge / 'socket'}", *own)
        wait_until((munge / "socket").exists, "munge's socket", self.logs)

    def _start_node(self, node: str) -> None:
        slurmd = f"exec slurmd -D -N {node} -f {self.env['SLURM_CONF']}"
        script = f"mount -t tmpfs tmpfs /sys/fs/cgroup; hostname {node}; {slurmd}"
        self._daemon(f"slurmd-{node}", *self.in_node(node, "unshare", "--uts", "sh", "-c", script))

    def _daemon(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.out").open("wb") as output:
            self._daemons[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=end_with_parent,
                env={**os.environ, **self.env},
            )

    def _is_up(self) -> bool:
        if any(daemon.poll() is not None for daemon in self._daemons.values()):
            raise NoCluster(f"a daemon of SLURM ended:\n{self.logs()}")
        done = subprocess.run(
            ["sinfo", "--noheader", "--format=%D %T"],
            env={**os.environ, **self.env},
            capture_output=True,
            text=True,
        )
        return done.stdout.split() == ["2", "idle"]


def end_with_parent() -> None:
    """Ask Linux to kill this process when the test session is killed, and to leave no memory image where it crashes."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def run(*command: str) -> None:
    """Run a command that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise NoCluster(f"{' '.join(command)}: {done.stderr.strip()}")


@contextlib.contextmanager
def two_nodes(folder: Path) -> Iterator[SlurmCluster]:
    """Bring a cluster up for as long as the block runs, under the first number that no other session has."""
    check_possible()
    with contextlib.ExitStack() as stack:
        locks = [stack.enter_context(Path(f"{LOCK}-{number}").open("w")) for number in range(MAX_CLUSTERS)]

        def taken() -> int:
            return next((number + 1 for number, lock in enumerate(locks) if is_ours(lock)), 0)

        cluster = SlurmCluster(folder, wait_until(taken, "a session that ends its cluster") - 1)
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
