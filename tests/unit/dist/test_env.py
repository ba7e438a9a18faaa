"""Ranks from the variables of every launcher, and the traps between them."""

import platform

import pytest

from trainer.dist.env import (
    JOB_PORTS,
    RankEnv,
    expected_nodes,
    is_rank,
    job_port,
    node_name,
    rank_env,
    rank_shown,
)
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


@pytest.mark.parametrize(
    "environ",
    [
        # srun --pty bash, and salloc where LaunchParameters=use_interactive_step: SLURM_NTASKS is the job's there.
        {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "1", "SLURM_STEP_ID": "0"},
        {
            "SLURM_PROCID": "0",
            "SLURM_LOCALID": "0",
            "SLURM_NTASKS": "16",
            "SLURM_STEP_NUM_TASKS": "1",
            "SLURM_STEP_ID": "4294967290",
        },
        {},
    ],
    ids=["srun --pty", "interactive step", "no SLURM"],
)
def test_what_is_typed_into_a_shell_on_a_node_is_no_rank(environ):
    """Taken for a rank it would train on one of the node's GPUs, or wait for ranks that nobody starts."""
    assert not is_rank(environ)
    assert rank_env(environ).world_size == 1
    # What it starts are ranks, whatever SLURM says of the shell.
    own = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "16", "MASTER_ADDR": "127.0.0.1"}
    assert is_rank(environ | own) and rank_env(environ | own).rank == 1


@pytest.mark.parametrize("environ", [TORCHRUN, SLURM, MPI], ids=["torchrun", "srun", "mpirun"])
def test_ranks_of_every_launcher_are_ranks(environ):
    assert is_rank(environ)
    assert rank_shown(environ) == rank_env(environ).rank


def test_a_message_about_broken_variables_needs_no_sound_ones():
    assert rank_shown({"RANK": "-1"}) == 0 and rank_shown({}) == 0


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


# One node and two, as the launchers really export them inside a SLURM job (what decides nothing is left out).
JOB = {"SLURM_JOB_ID": "41234", "SLURM_JOB_NODELIST": "node[07-08]", "SLURM_NODEID": "0", "SLURM_PROCID": "0"}
STEP = JOB | {"SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "node[07-08]", "SLURM_STEP_NUM_NODES": "2"}
ADDRESS = {"MASTER_ADDR": "node07", "MASTER_PORT": "20077"}


def srun_task(rank, per_node, nodes=2):
    own = {
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank % per_node),
        "SLURM_NODEID": str(rank // per_node),
    }
    return STEP | own | {"SLURM_NTASKS": str(nodes * per_node), "SLURM_STEP_NUM_NODES": str(nodes)}


def deepspeed_rank(rank, per_node, nodes=2):
    """One launcher a node under srun, each starting its ranks."""
    node = srun_task(rank // per_node, 1, nodes)
    own = {"RANK": str(rank), "LOCAL_RANK": str(rank % per_node), "WORLD_SIZE": str(nodes * per_node)}
    return (
        node
        | own
        | {"CROSS_RANK": str(rank // per_node), "CROSS_SIZE": str(nodes), "LOCAL_SIZE": str(per_node)}
    )


def torchrun_rank(rank, per_node, nodes=2):
    node = srun_task(rank // per_node, 1, nodes)
    own = {"RANK": str(rank), "LOCAL_RANK": str(rank % per_node), "WORLD_SIZE": str(nodes * per_node)}
    return node | own | {"GROUP_RANK": str(rank // per_node), "TORCHELASTIC_RUN_ID": "none"}


@pytest.mark.parametrize("launcher", [srun_task, deepspeed_rank, torchrun_rank])
@pytest.mark.parametrize(("nodes", "per_node"), [(1, 1), (1, 4), (2, 1), (2, 4)])
def test_ranks_of_a_job_are_numbered_by_every_launcher(launcher, nodes, per_node):
    found = [rank_env(launcher(rank, per_node, nodes) | ADDRESS) for rank in range(nodes * per_node)]
    world = nodes * per_node
    assert found == [RankEnv(r, r % per_node, world, "node07", 20077) for r in range(world)]


def test_the_first_node_and_the_port_are_found_from_slurm_where_nobody_exports_them():
    found = {
        (rank_env(srun_task(rank, 4)).master_addr, rank_env(srun_task(rank, 4)).master_port)
        for rank in range(8)
    }
    assert found == {("node07", job_port(41234))}
    assert job_port(41234) == 21234


def test_ports_of_jobs_are_below_those_that_connections_take_and_differ_between_neighbours():
    assert {job_port(job) for job in range(50_000)} == set(JOB_PORTS)
    assert max(JOB_PORTS) < 32_768
    assert job_port(7) != job_port(8)


def test_a_node_list_that_is_none_is_refused():
    with pytest.raises(TopologyError, match="`SLURM_JOB_NODELIST` must be a list of nodes"):
        rank_env(srun_task(1, 4) | {"SLURM_STEP_NODELIST": "node[7-"})


def test_a_node_rank_that_the_batch_script_expanded_is_refused():
    """`--node_rank $SLURM_NODEID` without quotes: the second node's launcher believes to be the first."""
    early = deepspeed_rank(1, 1) | {"RANK": "0", "CROSS_RANK": "0"} | ADDRESS
    with pytest.raises(
        TopologyError, match=r"`--node_rank` must be this task's SLURM_NODEID \(1\), but is 0 instead"
    ):
        rank_env(early)


def test_a_rank_that_the_batch_script_expanded_is_refused():
    """`export RANK=$SLURM_PROCID` before srun: every task believes to be rank 0."""
    early = srun_task(3, 4) | {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "8"} | ADDRESS
    with pytest.raises(
        TopologyError, match=r"`RANK` must be this task's SLURM_PROCID \(3\), but is 0 instead"
    ):
        rank_env(early)


def test_torchrun_may_number_nodes_in_its_own_order():
    swapped = torchrun_rank(0, 1) | {"SLURM_NODEID": "1", "SLURM_PROCID": "1"} | ADDRESS
    assert rank_env(swapped).rank == 0


def test_mpirun_inside_a_job_meets_on_its_first_node():
    ranks = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}
    assert rank_env(JOB | ranks) == RankEnv(1, 1, 2, "node07", 21234)


def test_nodes_are_named_as_slurm_names_them_inside_its_jobs_only():
    assert node_name({"SLURMD_NODENAME": "node7"}) == "node7"
    assert node_name({}) == platform.node()
    step = {"SLURM_STEP_NODELIST": "node[1-2]", "SLURM_JOB_NODELIST": "node[1-4]"}
    assert expected_nodes(step, 16) == {"node1": 8, "node2": 8}
    assert expected_nodes(step, 3) is None and expected_nodes({}, 2) is None
