"""What sinfo says, and what of a cluster section it makes impossible."""

import dataclasses

import pytest

from launch.slurm import clean_environment, node_kinds, parse_minutes, parse_sinfo, site_problems
from trainer.config.cluster import ClusterConfig, Scheduler
from trainer.errors import ConfigError

SINFO = """\
cpu*|up|40|(null)|64|1-00:00:00
a100|up|16|gpu:a100:8(S:0-1)|128|2-00:00:00
a100|up|2|gpu:a100:4|64|2-00:00:00
h100|up|8|gpu:h100:8(S:0-7),nvme:1|192+|infinite
old|down|9|gpu:4|16|infinite
"""
KINDS = parse_sinfo(SINFO)
GOOD = ClusterConfig(
    scheduler=Scheduler.slurm,
    partition="a100",
    num_nodes=2,
    ranks_per_node=8,
    cpus_per_rank=8,
    time_limit_min=60,
)


def problems(**changes):
    return list(site_problems(dataclasses.replace(GOOD, **changes), KINDS))


def test_partitions_that_are_up_are_read_with_their_gpus_cores_and_limits():
    assert [(k.partition, k.is_default, k.num_nodes, k.num_gpus, k.num_cpus, k.limit_min) for k in KINDS] == [
        ("cpu", True, 40, 0, 64, 1440),
        ("a100", False, 16, 8, 128, 2880),
        ("a100", False, 2, 4, 64, 2880),
        ("h100", False, 8, 8, 192, None),
    ]


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("30", 30), ("30:00", 30), ("2:00:00", 120), ("1-00:00:00", 1440), ("2-12", 3600), ("1-1:30", 1530)],
)
def test_slurms_times_are_read(text, minutes):
    assert parse_minutes(text) == minutes
    assert parse_minutes("infinite") is None


def test_what_the_partition_can_give_has_no_problem():
    assert problems() == []
    assert problems(partition="h100", num_nodes=8, time_limit_min=10**5) == []
    assert problems(partition=None, ranks_per_node=4, gpus_per_node=0) == []
    assert problems(partition="a100,h100", num_nodes=24) == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"partition": "b200"}, "`cluster.partition` must be one of a100, cpu, h100, but is 'b200' instead."),
        ({"partition": "old"}, "`cluster.partition` must be one of a100, cpu, h100, but is 'old' instead."),
        ({"partition": "a100,b200"}, "but is 'b200' instead."),
        (
            {"ranks_per_node": 16},
            "`cluster.ranks_per_node` must be at most the 8 GPUs of a node of partition a100",
        ),
        ({"partition": None}, "Set cluster.gpus_per_node=0 for CPU ranks."),
        (
            {"num_nodes": 17},
            "`cluster.num_nodes` must be at most the 16 such nodes of partition a100, but is 17",
        ),
        (
            {"cpus_per_rank": 32},
            "`cluster.cpus_per_rank` must be at most 16: a node of partition a100 has 128 cores",
        ),
        (
            {"time_limit_min": 4000},
            "`cluster.time_limit_min` must be at most the 2880 minutes of partition a100",
        ),
    ],
)
def test_what_it_cannot_give_is_a_sentence(changes, sentence):
    (problem,) = problems(**changes)
    assert sentence in problem.sentence


def test_a_controller_that_does_not_answer_is_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "sinfo").write_text(
        "#!/bin/sh\necho 'sinfo: error: Unable to contact slurm controller' >&2; exit 1\n"
    )
    (tmp_path / "sinfo").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(ConfigError, match="answer `sinfo` here, but it says instead: Unable to contact"):
        node_kinds()


def test_the_variables_of_another_job_do_not_reach_sbatch():
    """Inside an allocation SBATCH_PARTITION and SLURM_NTASKS would win over the lines of the script."""
    kept = clean_environment(
        {"PATH": "/bin", "SBATCH_PARTITION": "x", "SLURM_NTASKS": "3", "RANK": "0", "HF_HOME": "h"}
    )
    assert kept == {"PATH": "/bin", "HF_HOME": "h"}
