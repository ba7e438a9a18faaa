"""Find rank, world size and rendezvous address from the environment: the one place that reads them.

Takes a mapping and touches nothing; only the host's name is asked for.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass

from trainer.dist.hosts import expand_hosts
from trainer.errors import TopologyError

DEFAULT_PORT = 29500
JOB_PORTS = range(20_000, 30_000)
"""Below Linux's ephemeral ports, which any outgoing connection may hold."""


@dataclass(frozen=True, slots=True)
class RankEnv:
    """Where this process stands among all ranks."""

    rank: int
    local_rank: int
    world_size: int
    master_addr: str
    master_port: int

    @property
    def is_first(self) -> bool:
        """Tell whether this is the rank that writes and prints."""
        return self.rank == 0


def rank_env(environ: Mapping[str, str]) -> RankEnv:
    """Read the variables of `deepspeed`, `torchrun`, `mpirun` or `srun`; alone without any.

    A launcher's own variables win over SLURM's, inside whose jobs all of them run.

    Raises:
        TopologyError: Variables of a launcher are there, but incomplete, not numbers, or contradict SLURM's.
    """
    if "RANK" in environ:
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    elif "OMPI_COMM_WORLD_RANK" in environ:
        names = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE")
    elif "SLURM_PROCID" in environ and "SLURM_STEP_ID" in environ:
        names = ("SLURM_PROCID", "SLURM_LOCALID", _tasks_name(environ))
    else:
        return RankEnv(0, 0, 1, environ.get("MASTER_ADDR") or "127.0.0.1", _port(environ))
    rank, local_rank, world_size = (_number(environ, name) for name in names)
    if not 0 <= rank < world_size:
        raise TopologyError(
            f"`{names[0]}` must be in [0, {world_size}), but is {rank} instead. Check the launcher's variables."
        )
    if names[0] == "RANK":
        _check_not_expanded_early(environ, rank, world_size)
    return RankEnv(rank, local_rank, world_size, _address(environ, world_size), _port(environ))


def is_rank(environ: Mapping[str, str]) -> bool:
    """Tell whether a launcher started this process as one of several ranks.

    A SLURM step of one task is not: `srun --pty bash`, or salloc where it opens its shell on a node, is somebody's
    shell, and what is typed there may use all GPUs of the node.
    """
    if "RANK" in environ or "OMPI_COMM_WORLD_RANK" in environ:
        return True
    return "SLURM_STEP_ID" in environ and environ.get(_tasks_name(environ)) != "1"


def rank_shown(environ: Mapping[str, str]) -> int:
    """Return the rank for a message about variables that may be wrong; 0 where there is none."""
    names = ("RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")
    return next((int(environ[name]) for name in names if environ.get(name, "").isdigit()), 0)


def node_name(environ: Mapping[str, str]) -> str:
    """Return what this node is called: SLURM's name inside its jobs, which its commands take, else the host's."""
    return environ.get("SLURMD_NODENAME") or platform.node()


def expected_nodes(environ: Mapping[str, str], world_size: int) -> dict[str, int] | None:
    """Return the ranks of each node as SLURM gave them out; None outside its steps, or for other shares."""
    listed = environ.get("SLURM_STEP_NODELIST")
    nodes = expand_hosts(listed) if listed else []
    if not nodes or world_size % len(nodes):
        return None
    return dict.fromkeys(nodes, world_size // len(nodes))


def job_port(job_id: int) -> int:
    """Return the rendezvous port that a SLURM job tries first; jobs that share a node get different ones."""
    return JOB_PORTS[job_id % len(JOB_PORTS)]


def _address(environ: Mapping[str, str], world_size: int) -> str:
    """Return the first node: as exported, else the first of SLURM's list, which all ranks read alike."""
    given = environ.get("MASTER_ADDR")
    if given or world_size == 1:
        return given or "127.0.0.1"
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST")
    if nodes:
        return expand_hosts(nodes)[0]
    raise TopologyError(
        "`MASTER_ADDR` must be the first node's address when there are several ranks, but is unset "
        "instead. Start the ranks with deepspeed, torchrun or srun, or export it."
    )


def _port(environ: Mapping[str, str]) -> int:
    if environ.get("MASTER_PORT"):
        return _number(environ, "MASTER_PORT")
    job_id = environ.get("SLURM_JOB_ID", "")
    return job_port(int(job_id)) if job_id.isdigit() else DEFAULT_PORT


def _check_not_expanded_early(environ: Mapping[str, str], rank: int, world_size: int) -> None:
    """Refuse ranks that the batch script computed for all nodes at once.

    `srun ... --node_rank $SLURM_NODEID` without quotes is expanded before srun starts: every node is then
    node 0, two processes share each rank, and the rendezvous waits for the others for ever.
    """
    if "SLURM_STEP_ID" not in environ or "TORCHELASTIC_RUN_ID" in environ:
        return
    # DeepSpeed's launcher tells its node in CROSS_RANK; a rank exported by hand belongs to one task.
    if "CROSS_RANK" in environ:
        name, given, of_slurm = "--node_rank", environ["CROSS_RANK"], "SLURM_NODEID"
        is_comparable = environ.get("CROSS_SIZE") == environ.get("SLURM_STEP_NUM_NODES")
    else:
        name, given, of_slurm = "RANK", str(rank), "SLURM_PROCID"
        is_comparable = environ.get(_tasks_name(environ)) == str(world_size)
    if is_comparable and environ.get(of_slurm, given) != given:
        raise TopologyError(
            f"`{name}` must be this task's {of_slurm} ({environ[of_slurm]}), but is {given} instead: the batch "
            f"script expanded the variable before srun started. Write srun ... bash -c '... ${of_slurm} ...' in "
            "single quotes."
        )


def _tasks_name(environ: Mapping[str, str]) -> str:
    """Return the variable with the tasks of this step; SLURM_NTASKS may be those of the whole job."""
    return "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else "SLURM_NTASKS"


def _number(environ: Mapping[str, str], name: str) -> int:
    value = environ.get(name, "")
    if not value.isdigit():
        shown = value or "unset"
        raise TopologyError(
            f"`{name}` must be a whole number, but is {shown} instead. Start the ranks with deepspeed, "
            "torchrun, srun or mpirun."
        )
    return int(value)
