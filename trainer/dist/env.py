"""Find rank, world size and rendezvous address from the environment: the one place that reads them.

Pure: takes a mapping, touches nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trainer.errors import TopologyError


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

    Raises:
        TopologyError: Variables of a launcher are there, but incomplete or not numbers.
    """
    if "RANK" in environ:
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    elif "OMPI_COMM_WORLD_RANK" in environ:
        names = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE")
    elif "SLURM_PROCID" in environ and "SLURM_STEP_ID" in environ:
        names = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS")
    else:
        return RankEnv(0, 0, 1, environ.get("MASTER_ADDR", "127.0.0.1"), _port(environ))
    rank, local_rank, world_size = (_number(environ, name) for name in names)
    if not 0 <= rank < world_size:
        raise TopologyError(
            f"`{names[0]}` must be in [0, {world_size}), but is {rank} instead. Check the launcher's variables."
        )
    if world_size > 1 and "MASTER_ADDR" not in environ:
        raise TopologyError(
            "`MASTER_ADDR` must be the first node's address when there are several ranks, but is unset "
            "instead. Start the ranks with deepspeed or torchrun, or export it."
        )
    return RankEnv(rank, local_rank, world_size, environ.get("MASTER_ADDR", "127.0.0.1"), _port(environ))


def _port(environ: Mapping[str, str]) -> int:
    return _number(environ, "MASTER_PORT") if environ.get("MASTER_PORT") else 29500


def _number(environ: Mapping[str, str], name: str) -> int:
    value = environ.get(name, "")
    if not value.isdigit():
        shown = value or "unset"
        raise TopologyError(
            f"`{name}` must be a whole number, but is {shown} instead. Start the ranks with deepspeed, "
            "torchrun, srun or mpirun."
        )
    return int(value)
