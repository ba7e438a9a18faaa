"""What facts come to: every test has healthy nodes and one thing that is wrong with one of them."""

import dataclasses

import pytest

from trainer.preflight.facts import (
    Check,
    ClockFacts,
    FolderFacts,
    GpuFacts,
    NodeFacts,
    RankFacts,
    rank_facts,
    to_json,
)
from trainer.preflight.verdict import (
    Expected,
    judge_clocks,
    judge_folder,
    judge_gpus,
    judge_matmul,
    judge_versions,
    leave_out,
)

ASKED = Expected(
    num_gpus=2,
    ranks_per_node=2,
    max_ecc_errors=0,
    min_matmul_share=0.8,
    max_clock_skew_s=1.0,
    need_bytes=3 * 10**9,
    num_checkpoints=3,
    run_dir="/shared/run",
    is_slurm=True,
)
VERSIONS = {
    "torch": "2.13.0",
    "NCCL": "2.27.3",
    "driver": "580.65",
    "deepspeed": "0.19.8",
    "flash-attn": None,
}
NODE = NodeFacts(
    VERSIONS, {"trainer/run/loop.py": "aa", "trainer/run/step.py": "bb"}, "c0ffee" * 4, num_gpus=2
)
GPU = GpuFacts("NVIDIA H100 80GB HBM3", 79.6, "GPU-1", 0, False, False, [], 45)


def nodes(num_nodes=3, **changes):
    """Return the facts of nodes with two GPUs; `changes` are made to GPU 1 of the second one."""
    facts = [
        RankFacts(2 * n + g, g, f"node{n + 1}", True, GPU, 700e12, None, NODE if g == 0 else None)
        for n in range(num_nodes)
        for g in range(2)
    ]
    facts[3] = dataclasses.replace(facts[3], **changes)
    return facts


def second(of_node, num_nodes=3):
    """Return facts of which the second node tells something else."""
    facts = nodes(num_nodes)
    facts[2] = dataclasses.replace(facts[2], of_node=of_node)
    return facts


def test_healthy_nodes_pass_all_checks():
    for judged in (judge_versions(nodes()), judge_gpus(nodes(), ASKED), judge_matmul(nodes(), ASKED)):
        row, problems = judged
        assert problems == [] and not row.has_failed and row.nodes == 3
    assert "torch 2.13.0, NCCL 2.27.3, driver 580.65" in judge_versions(nodes())[0].result
    assert judge_gpus(nodes(), ASKED)[0].result == "6 x NVIDIA H100 80GB HBM3, 80 GiB; at most 45 C"
    assert judge_matmul(nodes(), ASKED)[0].result.startswith("median 700 TFLOP/s of bf16, slowest 1.00")


def test_facts_survive_being_sent():
    for one in nodes():
        assert rank_facts(to_json(one)) == one


@pytest.mark.parametrize("name", [name for name, value in VERSIONS.items() if value])
def test_the_node_with_another_version_is_named_with_both(name):
    other = dataclasses.replace(NODE, versions={**VERSIONS, name: "0.0"})
    row, (problem,) = judge_versions(second(other))
    assert row.has_failed and (problem.check, problem.nodes) == (Check.versions, ("node2",))
    assert problem.sentence.startswith(
        f"`{name} on node2` must be {VERSIONS[name]} as on node1, node3, but is 0.0 instead. Give all nodes one"
    )


def test_a_package_that_one_node_lacks_or_has_alone_is_told():
    (lacks,) = judge_versions(second(dataclasses.replace(NODE, versions={**VERSIONS, "deepspeed": None})))[1]
    assert "must be 0.19.8 as on node1, node3, but is absent instead" in lacks.sentence
    (alone,) = judge_versions(second(dataclasses.replace(NODE, versions={**VERSIONS, "flash-attn": "2.8"})))[
        1
    ]
    assert "`flash-attn on node2` must be absent as on node1, node3, but is 2.8 instead" in alone.sentence


def test_other_code_is_told_by_its_files_and_another_configuration_by_its_digest():
    (code,) = judge_versions(
        second(dataclasses.replace(NODE, code={**NODE.code, "trainer/run/step.py": "cc"}))
    )[1]
    assert (
        "`palimpsest's code on node2`" in code.sentence and "differs in trainer/run/step.py:" in code.sentence
    )
    (config,) = judge_versions(second(dataclasses.replace(NODE, config="beef" * 6)))[1]
    assert "must be c0ffeec0ffee as on node1, node3, but is beefbeefbeef instead" in config.sentence


def test_the_many_are_right_wherever_the_odd_one_stands_and_of_two_the_first():
    facts = nodes()
    facts[0] = dataclasses.replace(facts[0], of_node=dataclasses.replace(NODE, config="1" * 24))
    (problem,) = judge_versions(facts)[1]
    assert problem.nodes == ("node1",)
    (problem,) = judge_versions(second(dataclasses.replace(NODE, config="1" * 24), num_nodes=2))[1]
    assert problem.nodes == ("node2",)


def test_a_node_with_too_few_gpus_is_named_with_why_torch_sees_none():
    blind = dataclasses.replace(NODE, num_gpus=0, gpu_trouble="No NVIDIA driver is loaded there")
    row, (problem,) = judge_gpus(second(blind), ASKED)
    assert row.has_failed and problem.nodes == ("node2",)
    assert "`GPUs of node2` must be at least the 2 that a node is asked for" in problem.sentence
    assert "but is 0 instead. No NVIDIA driver is loaded there. See `nvidia-smi`" in problem.sentence
    unasked = dataclasses.replace(ASKED, num_gpus=None)
    assert judge_gpus(second(blind), unasked)[1] != [], "the other nodes have two"
    cpus = [dataclasses.replace(one, on_gpu=False, gpu=None, of_node=blind) for one in nodes()]
    assert judge_gpus(cpus, unasked) == (judge_gpus(cpus, unasked)[0], [])
    assert judge_gpus(cpus, unasked)[0].result == "none asked for"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"ecc_errors": 3},
            "free of uncorrected ECC errors (cluster.preflight.max_ecc_errors=0), but is 3 since its driver was "
            "loaded instead. Have it reset: nvidia-smi --gpu-reset -i GPU-1.",
        ),
        ({"is_remap_pending": True}, "free of rows that wait to be remapped, but is pending instead."),
        ({"has_remap_failed": True}, "able to remap rows, but is failed instead. The GPU must be replaced."),
        (
            {"slowdowns": ["hardware thermal slowdown", "power brake"]},
            "at full speed under load, but is held back by hardware thermal slowdown, power brake instead.",
        ),
    ],
)
def test_a_sick_gpu_is_named_with_its_node(changes, sentence):
    row, (problem,) = judge_gpus(nodes(gpu=dataclasses.replace(GPU, **changes)), ASKED)
    assert row.has_failed and problem.nodes == ("node2",)
    assert problem.sentence.startswith(f"`GPU 1 of node2` must be {sentence}")
    assert "cluster.exclude='node2' (sbatch --exclude)" in problem.sentence


def test_ecc_errors_up_to_the_limit_are_accepted():
    facts = nodes(gpu=dataclasses.replace(GPU, ecc_errors=3))
    assert judge_gpus(facts, dataclasses.replace(ASKED, max_ecc_errors=3))[1] == []


def test_a_gpu_that_fails_while_it_works_is_named_with_what_cuda_said():
    (problem,) = judge_gpus(nodes(gpu=None, trouble="CUDA error: uncorrectable ECC"), ASKED)[1]
    assert "`GPU 1 of node2` must be able to multiply matrices, but is CUDA error" in problem.sentence


def test_without_nvml_the_row_says_so_and_nothing_fails():
    unread = dataclasses.replace(
        GPU, ecc_errors=None, is_remap_pending=None, unread="nvidia-ml-py is not installed"
    )
    row, problems = judge_gpus([dataclasses.replace(one, gpu=unread) for one in nodes()], ASKED)
    assert problems == [] and "health not read: nvidia-ml-py is not installed" in row.result


def test_a_slow_gpu_is_measured_against_the_median_of_all():
    row, (problem,) = judge_matmul(nodes(matmul_flops=480e12), ASKED)
    assert row.has_failed and problem.nodes == ("node2",)
    assert (
        "`matmul rate of GPU 1 of node2` must be at least 0.8 of the median, 700 TFLOP/s" in problem.sentence
    )
    assert "but is 480 TFLOP/s, 0.69 of it instead" in problem.sentence
    assert judge_matmul(nodes(matmul_flops=570e12), ASKED)[1] == []


def test_cpus_are_reported_and_not_judged():
    facts = [dataclasses.replace(one, on_gpu=False, gpu=None) for one in nodes(matmul_flops=1e9)]
    row, problems = judge_matmul(facts, ASKED)
    assert problems == [] and "fp32 on CPUs: not judged" in row.result


FOLDERS = [FolderFacts(f"node{n}", True, 0.1 * n, None, 4 * 10**9) for n in (1, 2, 3)]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"write_error": "Read-only file system"},
            "a folder that it can write to, but is /shared/run: Read-only",
        ),
        (
            {"is_seen": False},
            "one folder that all nodes share, but is /shared/run without what node1 wrote there",
        ),
        (
            {"is_seen_by_first": False},
            "where node1 does not see what node2 wrote instead. Mount the shared disk",
        ),
    ],
)
def test_a_run_directory_that_one_node_does_not_share_is_told(changes, sentence):
    # Its own disk is full as well, which is no matter of the shared one.
    odd = dataclasses.replace(FOLDERS[1], free_bytes=1, **changes)
    row, (problem,) = judge_folder([FOLDERS[0], odd, FOLDERS[2]], ASKED)
    assert row.has_failed and problem.nodes == ("node2",) and sentence in problem.sentence


def test_room_is_needed_once_for_all_nodes():
    assert judge_folder(FOLDERS, ASKED)[1] == []
    full = [dataclasses.replace(one, free_bytes=2 * 10**9) for one in FOLDERS]
    row, (problem,) = judge_folder(full, ASKED)
    assert row.has_failed
    assert (
        "must be a disk with room for 3 checkpoints, 3 GB, but is /shared/run with 2 GB" in problem.sentence
    )
    unknown = dataclasses.replace(ASKED, need_bytes=None)
    row, problems = judge_folder(full, unknown)
    assert problems == [] and "size of a checkpoint is not forecast" in row.result


def clocks(*ahead, round_trip_s=0.002):
    return [
        ClockFacts(f"node{n}", ahead_s, 0.0 if n == 1 else round_trip_s) for n, ahead_s in enumerate(ahead, 1)
    ]


def test_a_clock_that_is_off_is_named_against_most_of_them():
    row, problems = judge_clocks(clocks(0.0, 0.4, -0.3), ASKED)
    assert problems == [] and row.result == "within 0.400 s, give or take 1.0 ms"
    (problem,) = judge_clocks(clocks(0.0, -90.0, 0.1), ASKED)[1]
    assert problem.nodes == ("node2",) and "but is 90.0 s behind instead. Mend time" in problem.sentence
    (problem,) = judge_clocks(clocks(0.0, 7.0, 7.1), ASKED)[1]
    assert problem.nodes == ("node1",), "the first is the odd one"
    (problem,) = judge_clocks(clocks(0.0, 2.0), ASKED)[1]
    assert (
        "`clock of node2` must be within 1 s of node1" in problem.sentence
        and "2.0 s ahead" in problem.sentence
    )


def test_a_clock_is_never_accused_of_what_the_exchange_took():
    assert judge_clocks(clocks(0.0, 2.0, round_trip_s=2.2), ASKED)[1] == []
    assert len(judge_clocks(clocks(0.0, 2.0, round_trip_s=1.8), ASKED)[1]) == 1


def test_outside_slurm_nobody_is_sent_to_scontrol():
    assert leave_out(["a", "b"], is_slurm=False) == ""
    assert "scontrol update NodeName=a State=DRAIN" in leave_out(["a"], is_slurm=True)
