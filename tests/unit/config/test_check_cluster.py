"""Rules of the cluster section."""

import dataclasses

import pytest

from trainer.config.check_cluster import cluster_problems, lead_problems, submit_problems
from trainer.config.cluster import ClusterConfig, Launcher, Scheduler, gres_gpus
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
        ({"num_nodes": 0}, "cluster.num_nodes"),
        ({"ranks_per_node": -1}, "cluster.ranks_per_node"),
        ({"scheduler": Scheduler.none, "launcher": Launcher.deepspeed}, "cluster.hostfile"),
        ({"deepspeed_runner": "mpich"}, "cluster.deepspeed_runner"),
        ({"environment": {"MASTER_PORT": "x"}}, "cluster.environment.MASTER_PORT"),
        ({"environment": {"A B": "1"}}, "cluster.environment"),
        ({"environment": {"SLURM_X": "1"}}, "cluster.environment.SLURM_X"),
        ({"nccl": {"X": "1"}}, "cluster.nccl.X"),
        ({"num_nodes": 4, "min_nodes": 0}, "cluster.min_nodes"),
        ({"num_nodes": 4, "min_nodes": 5}, "cluster.min_nodes"),
        ({"num_nodes": 4, "min_nodes": 2, "scheduler": Scheduler.none}, "cluster.min_nodes"),
    ],
)
def test_every_rule_names_its_key(changes, key):
    (problem,) = cluster_problems(dataclasses.replace(SLURM, **changes))
    assert problem.key == key and problem.sentence.startswith(f"`{key}` must be")
    assert " instead. " in problem.sentence


@pytest.mark.parametrize(("min_nodes", "smaller"), [(None, []), (4, []), (3, [3]), (1, [1, 2, 3])])
def test_a_job_may_come_down_to_its_fewest_nodes(min_nodes, smaller):
    cluster = dataclasses.replace(SLURM, num_nodes=4, min_nodes=min_nodes)
    assert not [*cluster_problems(cluster)] and [*cluster.smaller] == smaller


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
    assert problem.key == f"cluster.preflight.{key}" and f"Set {problem.key}=" in problem.sentence


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"gres": "gpu:h100:4"},
            "`cluster.ranks_per_node` must be at most the 4 GPUs of a node, cluster.gres, but is 8",
        ),
        ({"gres": "nvme:1,gpu"}, "at most the 1 GPUs of a node, cluster.gres"),
        (
            {"gres": "gpu:h100:4", "gpus_per_node": 8},
            "`cluster.gres` must be of the 8 GPUs of cluster.gpus_per_node, but is 'gpu:h100:4' instead. Set "
            "cluster.gpus_per_node=4, or null.",
        ),
        ({"scratch": "scratch"}, "`cluster.scratch` must be a folder from /, but is 'scratch'"),
        (
            {"sbatch_options": ["mail-type=END"]},
            "`cluster.sbatch_options` must be options such as --mail-type=END",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_before_submission(changes, sentence):
    cluster = dataclasses.replace(SLURM, ranks_per_node=8, **changes)
    (problem,) = submit_problems(cluster, "/shared/run")
    assert sentence in problem.sentence


@pytest.mark.parametrize(
    ("gres", "count"),
    [
        ("gpu", 1),
        ("gpu:4", 4),
        ("gpu:a100-sxm4-80gb:8(S:0-1)", 8),
        ("gpu:a100:2,gpu:h100:2,nvme:1", 4),
        ("nvme:1", None),
        ("", None),
    ],
)
def test_gpus_are_counted_in_slurms_words(gres, count):
    assert gres_gpus(gres) == count


def test_a_hostfile_goes_with_the_deepspeed_launcher():
    assert [*cluster_problems(ClusterConfig(hostfile="hosts", launcher=Launcher.deepspeed))] == []


def test_the_lead_must_hold_one_save_and_the_limit_more_than_the_lead():
    assert [*lead_problems(SLURM, 180, 60, "measured")] == []
    (lead,) = lead_problems(dataclasses.replace(SLURM, signal_lead_s=50), 50, 60, "measured")
    assert (
        "`cluster.signal_lead_s` must be at least the 60 s that a save takes (measured), but is 50"
        in lead.sentence
    )
    (limit,) = lead_problems(dataclasses.replace(SLURM, time_limit_min=3), 180, 60, "measured")
    assert limit.sentence.startswith("`cluster.time_limit_min` must be more than 3 minutes")
