"""Rules of the cluster section."""

import dataclasses

import pytest

from trainer.config.check_cluster import cluster_problems, lead_problems, submit_problems
from trainer.config.cluster import ClusterConfig, Launcher, Scheduler
from trainer.config.preflight import PreflightConfig

SLURM = ClusterConfig(scheduler=Scheduler.slurm, ranks_per_node=8)


def test_the_defaults_and_a_plain_slurm_section_have_no_problem():
    assert [*cluster_problems(ClusterConfig())] == []
    assert [*cluster_problems(SLURM), *submit_problems(SLURM, "/shared/runs/a")] == []


def test_a_folder_whose_name_begins_like_a_local_one_is_shared():
    assert [*submit_problems(SLURM, "/tmpfs-shared/a")] == []
    assert len([*submit_problems(SLURM, "/tmp")]) == 1
    assert [*submit_problems(dataclasses.replace(SLURM, node_local_paths=[]), "/tmp/a")] == []


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"master_port": 70000}, "cluster.master_port"),
        ({"write_gb_per_s": 0.0}, "cluster.write_gb_per_s"),
        ({"write_gb_per_s": float("nan")}, "cluster.write_gb_per_s"),
        ({"gpu_gib": -1.0}, "cluster.gpu_gib"),
        ({"time_limit_min": 0}, "cluster.time_limit_min"),
        ({"signal_lead_s": 0}, "cluster.signal_lead_s"),
        ({"hostfile": "hosts"}, "cluster.launcher"),
        ({"deepspeed_runner": "slurm"}, "cluster.deepspeed_runner"),
        ({"environment": {"A B": "1"}}, "cluster.environment"),
        ({"environment": {"SLURM_X": "1"}}, "cluster.environment.SLURM_X"),
        ({"nccl": {"X": "1"}}, "cluster.nccl.X"),
    ],
)
def test_every_rule_names_its_key(changes, key):
    (problem,) = cluster_problems(dataclasses.replace(SLURM, **changes))
    assert problem.startswith(f"`{key}` must be") and " instead. " in problem


@pytest.mark.parametrize(
    "changes",
    [
        {"timeout_s": 14, "rendezvous_s": 5},
        {"timeout_s": 601},
        {"rendezvous_s": 0},
        {"rendezvous_s": 50},
        {"max_clock_skew_s": 0.0},
        {"max_clock_skew_s": float("nan")},
        {"min_matmul_share": 1.1},
        {"max_ecc_errors": -1},
        {"visible_s": 0.0},
        {"visible_s": 50.0},
        {"min_intra_node_gb_per_s": -1.0},
        {"min_inter_node_gb_per_s": float("nan")},
    ],
)
def test_limits_of_the_preflight_have_ranges(changes):
    cluster = dataclasses.replace(SLURM, preflight=PreflightConfig(**changes))
    (problem,) = cluster_problems(cluster)
    key = next(iter(changes))
    assert (
        problem.startswith(f"`cluster.preflight.{key}` must be")
        and f"Set cluster.preflight.{key}=" in problem
    )


def test_a_hostfile_goes_with_the_deepspeed_launcher():
    assert [*cluster_problems(ClusterConfig(hostfile="hosts", launcher=Launcher.deepspeed))] == []


def test_the_lead_must_hold_one_save_and_the_limit_more_than_the_lead():
    assert [*lead_problems(SLURM, 180, 60, "measured")] == []
    (lead,) = lead_problems(dataclasses.replace(SLURM, signal_lead_s=50), 50, 60, "measured")
    assert "`cluster.signal_lead_s` must be at least the 60 s that a save takes (measured), but is 50" in lead
    (limit,) = lead_problems(dataclasses.replace(SLURM, time_limit_min=3), 180, 60, "measured")
    assert limit.startswith("`cluster.time_limit_min` must be more than 3 minutes")
