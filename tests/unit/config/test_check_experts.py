"""Experts spread over ranks: what it cannot go with is refused with the key and the fix."""

import pytest

from trainer.config.check import find_problems
from trainer.config.store import compose_config

BASE = [
    "model=tiny",
    "data=text",
    "data.sources.corpus.path=x.txt",
    "run_dir=/nowhere",
    "zero=zero2",
    "train.max_steps=4",
]


def problems(*words, ranks=None):
    config = compose_config([*BASE, "zero.expert_parallel=2", *words])
    return {found.key: found.sentence for found in find_problems(config, ranks)}


def test_spread_experts_of_a_full_run_at_stages_1_to_3_break_no_rule():
    for stage in (1, 2, 3):
        assert not problems(f"zero.stage={stage}", "train.global_batch_tokens=65536", ranks=4)


@pytest.mark.parametrize(
    ("words", "ranks", "key", "rule", "fix"),
    [
        (["zero.expert_parallel=0"], 2, "zero.expert_parallel", "1 (off) or more", "=1."),
        ([], 1, "zero.expert_parallel", "1 on one rank", "=1."),
        (["zero.expert_parallel=4"], 6, "zero.expert_parallel", "a divisor of the 6 ranks", "=3."),
        (["zero=zero0"], 2, "zero.stage", "1, 2 or 3", "zero=zero2"),
        (["tune=lora"], 2, "tune.method", "full", "tune=full"),
        (["train.router_bias_rate=0.001"], 2, "train.router_bias_rate", "0 with", "zero.expert_parallel=1"),
        (["zero.offload_optimizer=cpu"], 2, "zero.offload_optimizer", "none", "zero.offload_optimizer=none"),
        (
            ["zero=zero3", "zero.offload_param=cpu"],
            2,
            "zero.offload_param",
            "none",
            "zero.offload_param=none",
        ),
        (
            ["zero.extra.zero_optimization.round_robin_gradients=true"],
            2,
            "zero.extra.zero_optimization",
            "left out",
            "zero.expert_parallel=1",
        ),
    ],
)
def test_what_spread_experts_cannot_go_with_is_refused(words, ranks, key, rule, fix):
    sentence = problems(*words, ranks=ranks)[key]
    assert sentence.startswith(f"`{key}` must be {rule}") and fix in sentence


def test_every_number_of_nodes_that_a_job_may_come_down_to_must_share_the_experts():
    nodes = ("cluster=slurm_cpu", "cluster.num_nodes=4", "train.global_batch_tokens=65536")
    assert not problems(*nodes, ranks=4)
    for min_nodes, is_allowed in ((1, False), (2, False), (4, True)):
        found = problems(*nodes, f"cluster.min_nodes={min_nodes}", ranks=4)
        assert ("cluster.min_nodes" in found) != is_allowed, min_nodes
    assert (
        "a multiple of zero.expert_parallel=2"
        in problems(*nodes, "cluster.min_nodes=1", ranks=4)["cluster.min_nodes"]
    )
    two = ("cluster.ranks_per_node=2", "cluster.min_nodes=1")
    assert not problems(*nodes, *two, ranks=8)


def test_without_spread_experts_none_of_it_is_a_problem():
    assert not problems("zero.expert_parallel=1", "zero=zero3", "train.global_batch_tokens=65536", ranks=2)


def test_the_key_of_deepspeed_is_pointed_to_ours():
    sentence = problems("zero.extra.expert_parallel.enabled=true", ranks=2)["zero.extra.expert_parallel"]
    assert sentence.endswith("Set zero.expert_parallel instead.")
