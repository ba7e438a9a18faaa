"""Config section of the cluster: a site's settings, and how ranks are started there."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum

from trainer.config.preflight import PreflightConfig
from trainer.config.watch import WatchConfig

_GPU = re.compile(r"gpu(?::[A-Za-z][\w.-]*)?(?::(\d+))?")


class Scheduler(Enum):
    """Who gives out nodes."""

    none = "none"
    """Nobody: this machine, or a hostfile."""
    slurm = "slurm"
    """SLURM."""


class Launcher(Enum):
    """Who starts the ranks of a job."""

    srun = "srun"
    """One task a rank."""
    deepspeed = "deepspeed"
    """Once a node."""
    torchrun = "torchrun"
    """Once a node."""


class ContainerRuntime(Enum):
    """What the ranks of a job run in."""

    none = "none"
    """The environment of the one who submits."""
    apptainer = "apptainer"
    """Apptainer, also singularity."""
    pyxis = "pyxis"
    """enroot, through srun's own options."""


@dataclass
class ContainerConfig:
    """An image that holds the package, for clusters that have no environment of their own."""

    runtime: ContainerRuntime = ContainerRuntime.none
    """`apptainer` (also singularity), or `pyxis` for enroot through srun's own options."""
    image: str | None = None
    """File (.sif, .sqsh) or address (docker://...) of the image. Files must be visible from all nodes."""
    mounts: list[str] = field(default_factory=list)
    """HOST or HOST:INSIDE folders to see inside, beside the run directory, the cache and the working directory."""
    options: list[str] = field(default_factory=list)
    """More options: of `apptainer exec`, or of srun for pyxis."""
    python: str = "python"
    """Interpreter inside the image."""


@dataclass
class ClusterConfig:
    """Where ranks run. A site's own file belongs into a folder that hydra.searchpath names."""

    num_nodes: int = 1
    """Nodes of the run."""
    min_nodes: int | None = None
    """A job of `submit` that loses nodes goes on by itself with those that are left, where they are at least so many;
    null: it waits in the queue for all of them."""
    ranks_per_node: int = 0
    """Processes on a node; 0 means one a GPU, or one on a machine without a GPU. `submit` needs a number."""
    comm_timeout_s: int = 1800
    """A collective that takes longer ends the run with an error."""
    master_port: int = 0
    """Rendezvous port on the first node; 0 picks a free one."""
    hostfile: str | None = None
    """A cluster without a scheduler: a file of `HOST slots=N` lines for deepspeed, which starts the ranks there."""
    deepspeed_runner: str = "pdsh"
    """How deepspeed reaches the hosts of a hostfile: pdsh or openmpi, over ssh; or slurm, by srun within salloc."""
    scheduler: Scheduler = Scheduler.none
    """`slurm` for `palimpsest submit`."""
    launcher: Launcher = Launcher.srun
    """`srun` starts one task a rank, so that signals and exit codes are the ranks' own; `deepspeed` and `torchrun` are
    started once a node."""
    partition: str | None = None
    """Partition; null is the site's default."""
    account: str | None = None
    """Account that pays."""
    qos: str | None = None
    """Quality of service."""
    reservation: str | None = None
    """Reservation."""
    constraint: str | None = None
    """Features that nodes must have, such as `a100&nvlink`."""
    exclude: str | None = None
    """Nodes to stay away from, such as `node[07,19]`."""
    gpus_per_node: int | None = None
    """GPUs asked for on a node; null: one a rank; 0: none, for CPU partitions."""
    gres: str | None = None
    """Generic resources of a node in SLURM's words, such as `gpu:a100:8`; null makes gpu:N of gpus_per_node."""
    gpu_gib: float | None = None
    """Memory of one GPU of these nodes in GiB, for the memory forecast; null: plan.gpu_gib, else not compared."""
    cpus_per_rank: int | None = None
    """CPU cores of a rank, data workers included; null is the site's default, often 1."""
    mem: str | None = None
    """Host memory of a node in SLURM's words; `0` is all of it; null is the site's default."""
    exclusive: bool = False
    """Let no other job onto the nodes."""
    time_limit_min: int = 1440
    """Minutes that one attempt may take; the job requeues itself until the run is done."""
    signal_lead_s: int | None = None
    """Seconds before the time limit at which ranks are told to save and stop; null: from the measured or forecast time
    of a save, at least 120."""
    write_gb_per_s: float = 1.0
    """10^9 bytes a second that one node writes to the run directory; used until a save was measured."""
    max_stuck_attempts: int = 3
    """Stop after so many attempts in a row that committed no checkpoint."""
    sbatch_options: list[str] = field(default_factory=list)
    """More options of sbatch, such as `--mail-type=END`."""
    modules: list[str] = field(default_factory=list)
    """Environment modules to load, in this order."""
    setup: list[str] = field(default_factory=list)
    """Shell lines to run before the ranks start, after the modules."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables of the ranks. What is written is frozen in the run directory; ${oc.env:NAME} is looked up there."""
    nccl: dict[str, str] = field(default_factory=dict)
    """NCCL's variables, such as NCCL_SOCKET_IFNAME: ib0."""
    scratch: str | None = None
    """Folder on each node for temporary files; ranks get a folder of their job in it as TMPDIR."""
    python: str | None = None
    """Interpreter that runs the ranks, visible from all nodes; null is the one that submits."""
    node_local_paths: list[str] = field(default_factory=lambda: ["/tmp", "/var/tmp", "/dev/shm", "/run"])
    """Folders that each node has for itself: a run directory there would be lost with its node."""
    container: ContainerConfig = field(default_factory=ContainerConfig)
    """Image to run in."""
    preflight: PreflightConfig = field(default_factory=PreflightConfig)
    """Checks of the nodes before the ranks start."""
    watch: WatchConfig = field(default_factory=WatchConfig)
    """What ranks look for in each other while they work."""

    @property
    def num_gpus_asked(self) -> int:
        """Return the GPUs asked for on a node: gpus_per_node, else those of gres, else one a rank."""
        if self.gpus_per_node is not None:
            return self.gpus_per_node
        of_gres = gres_gpus(self.gres)
        return self.ranks_per_node if of_gres is None else of_gres

    @property
    def fewest_nodes(self) -> int:
        """Return the nodes that a job may come down to by itself."""
        return self.num_nodes if self.min_nodes is None else self.min_nodes

    @property
    def smaller(self) -> range:
        """Return the numbers of nodes that a job may go on with after it lost some."""
        return range(self.fewest_nodes, self.num_nodes)


def gres_gpus(gres: str | None) -> int | None:
    """Return the GPUs that generic resources in SLURM's words name, such as 8 of `gpu:h100:8,nvme:1`; None for none."""
    found = [_GPU.fullmatch(resource.partition("(")[0]) for resource in (gres or "").split(",")]
    counts = [int(match.group(1) or 1) for match in found if match]
    return sum(counts) if counts else None
