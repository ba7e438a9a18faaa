"""Ranks from the variables of every launcher, and the traps between them."""

import pytest

from trainer.dist.env import RankEnv, rank_env
from trainer.errors import TopologyError

TORCHRUN = {
    "RANK": "5",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "8",
    "MASTER_ADDR": "node0",
    "MASTER_PORT": "1234",
}
SLURM = {
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "3",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_ID": "0",
    "MASTER_ADDR": "node0",
}
MPI = {
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_SIZE": "4",
    "MASTER_ADDR": "node0",
}


def test_without_a_launcher_there_is_one_rank():
    assert rank_env({}) == RankEnv(0, 0, 1, "127.0.0.1", 29500)
    assert rank_env({}).is_first


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        (TORCHRUN, RankEnv(5, 1, 8, "node0", 1234)),
        (SLURM, RankEnv(3, 3, 4, "node0", 29500)),
        (MPI, RankEnv(2, 0, 4, "node0", 29500)),
    ],
    ids=["deepspeed and torchrun", "srun", "mpirun"],
)
def test_every_launcher_is_understood(environ, expected):
    assert rank_env(environ) == expected
    assert not rank_env(environ).is_first


def test_torchrun_inside_an_allocation_wins_over_the_variables_of_slurm():
    assert rank_env(SLURM | TORCHRUN).rank == 5


def test_a_batch_script_or_salloc_shell_is_no_rank():
    """There SLURM_PROCID is 0 and SLURM_NTASKS is all tasks, but no step has been started."""
    batch = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "16", "SLURM_JOB_ID": "7"}
    assert rank_env(batch).world_size == 1


def test_one_rank_of_a_launcher_needs_no_address():
    assert rank_env({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}).master_addr == "127.0.0.1"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"LOCAL_RANK": None}, "`LOCAL_RANK` must be a whole number, but is unset"),
        ({"WORLD_SIZE": "eight"}, "`WORLD_SIZE` must be a whole number, but is eight"),
        ({"RANK": "-1"}, "`RANK` must be a whole number, but is -1"),
        ({"RANK": "8"}, r"`RANK` must be in \[0, 8\), but is 8"),
        ({"MASTER_ADDR": None}, "`MASTER_ADDR` must be the first node's address"),
        ({"MASTER_PORT": "http"}, "`MASTER_PORT` must be a whole number, but is http"),
        ({"WORLD_SIZE": ""}, "`WORLD_SIZE` must be a whole number, but is unset"),
    ],
)
def test_half_an_environment_is_refused_by_name(change, named):
    environ = {k: v for k, v in (TORCHRUN | change).items() if v is not None}
    with pytest.raises(TopologyError, match=named):
        rank_env(environ)


def test_slurm_steps_without_a_local_rank_are_refused():
    environ = {key: value for key, value in SLURM.items() if key != "SLURM_LOCALID"}
    with pytest.raises(TopologyError, match="`SLURM_LOCALID`"):
        rank_env(environ)
