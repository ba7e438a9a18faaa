"""Ranks that share the tokens of packs: what it cannot go with is refused with the key and the fix."""

import pytest

from trainer.config.check import find_problems
from trainer.config.snapshot import asked_digest, config_digest
from trainer.config.store import compose_config

KEY = "train.sequence_parallel"
BASE = [
    "model=tiny",
    "data=text",
    "data.sources.corpus.path=x.txt",
    "data.seq_len=128",
    "run_dir=/nowhere",
    "train.max_steps=4",
    "train.global_batch_tokens=256",
    f"{KEY}=2",
]


def problems(*words, ranks=None):
    config = compose_config([*BASE, *words])
    return {found.key: found.sentence for found in find_problems(config, ranks)}


def test_shared_packs_break_no_rule_at_any_stage_for_all_weights_and_for_lora():
    for words in ([f"zero.stage={stage}", f"tune={tune}"] for stage in range(4) for tune in ("full", "lora")):
        assert not problems(*words, ranks=4)


@pytest.mark.parametrize(
    ("words", "ranks", "key", "rule", "fix"),
    [
        ([f"{KEY}=0"], 2, KEY, "1 (off) or more", "=1."),
        ([], 1, KEY, "1 on one rank", "=1."),
        ([f"{KEY}=4"], 6, KEY, "a divisor of the 6 ranks", "=3."),
        (["data.seq_len=127"], 2, "data.seq_len", f"a multiple of {KEY}=2", "data.seq_len=128"),
        (["objective=weighted"], 2, "objective.kind", "causal_lm", "objective=causal_lm"),
        (["replay.kl.beta=0.1"], 2, "replay.kl.beta", "0 with", f"{KEY}=1"),
        (["tune=prefix"], 2, "tune.method", "one without virtual tokens", "tune=lora"),
        (["data.packing=none"], 2, "data.packing", "auto", "data.packing=auto"),
        (["model.attention=eager"], 2, "model.attention", "auto", "model.attention=auto"),
        (["zero.expert_parallel=2"], 2, "zero.expert_parallel", "1 with", f"{KEY}=1"),
        (["train.router_bias_rate=0.001"], 2, "train.router_bias_rate", "0 with", f"{KEY}=1"),
        (
            ["train.global_batch_tokens=128"],
            4,
            "train.global_batch_tokens",
            f"a multiple of ranks / {KEY} x micro batch x seq_len = 2 x 1 x 128 = 256",
            "train.global_batch_tokens=256",
        ),
    ],
)
def test_what_shared_packs_cannot_go_with_is_refused(words, ranks, key, rule, fix):
    sentence = problems(*words, ranks=ranks)[key]
    assert sentence.startswith(f"`{key}` must be {rule}") and fix in sentence


def test_every_number_of_nodes_that_a_job_may_come_down_to_must_share_packs():
    nodes = ("cluster=slurm_cpu", "cluster.num_nodes=4", "train.global_batch_tokens=65536")
    words = (*nodes, "cluster.ranks_per_node=3", "cluster.min_nodes=2")
    assert problems(*words)["cluster.min_nodes"].startswith(
        f"`cluster.min_nodes` must be null, or the ranks of every number of nodes from it on a multiple of {KEY}=2"
    )
    assert "cluster.min_nodes" not in problems(*words, "cluster.ranks_per_node=4")


def test_a_run_that_shares_otherwise_is_the_same_training():
    one, two = compose_config(BASE), compose_config([*BASE, f"{KEY}=4"])
    assert config_digest(one) == config_digest(two) and asked_digest(one) == asked_digest(two)
