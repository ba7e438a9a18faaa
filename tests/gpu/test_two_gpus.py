"""Two GPUs: a run that goes on with one, and a rank that is stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu.test_gpu_paths import common_overrides, prepared, start
from tests.helpers.wait import wait_until
from trainer.checkpoint.layout import step_dir
from trainer.metrics.jsonl import read

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]
BF16 = 1e-3
"""Absolute, of a loss: sums are added up in another order."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("two_gpus"))


def launch(num_gpus: int) -> list[str]:
    return [
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc_per_node={num_gpus}",
        "-m",
        "trainer",
        "train",
    ]


def train(place: Path, name: str, num_gpus: int, *words: str) -> dict[int, float]:
    own = (
        "train.global_batch_tokens=8192",
        "train.micro_batch_size=2",
        "optim.lr=1e-3",
        "deterministic=true",
    )
    own += ("checkpoint.every_steps=6", "log.progress=false", f"run_dir={place / name}", *words)
    start(launch(num_gpus), [*common_overrides(place), *own])
    return {row["step"]: row["loss"] for row in read(place / name / "metrics.jsonl") if "loss" in row}


@pytest.mark.parametrize("words", [("tune=lora", "zero=zero1"), ("zero=zero2",)], ids=["lora", "full"])
def test_what_two_gpus_saved_one_goes_on_with(place: Path, words: tuple[str, ...]) -> None:
    """A failure points at shards that are read into the wrong place, or at the position of the data."""
    kind = words[0].replace("=", "-")
    whole = train(place, f"two-{kind}", 2, *words)
    shutil.copytree(step_dir(place / f"two-{kind}", 6), step_dir(place / f"one-{kind}", 6))
    rest = train(place, f"one-{kind}", 1, *words)
    assert sorted(rest) == list(range(7, 13))
    worst = max(abs(rest[step] - whole[step]) for step in rest)
    print(f"largest difference of a loss: {worst:.2e}")
    assert worst <= BF16
    digests = [
        [json.loads(line) for line in (place / f"{name}-{kind}" / "ledger.jsonl").read_text().splitlines()]
        for name in ("two", "one")
    ]
    two, one = ([row["data_digest"] for row in rows if row["event"] == "saved"][-1] for rows in digests)
    assert two == one


def test_a_stopped_rank_is_named_and_the_job_ends_with_a_code_that_requeues(place: Path) -> None:
    """A failure points at a watch that waits behind NCCL's kernels, or at ranks that are left."""
    words = [*common_overrides(place), "train.max_steps=1000000", "evaluate.every_steps=0"]
    words += ["train.global_batch_tokens=2048", "train.micro_batch_size=2"]
    words += [
        "checkpoint.enabled=false",
        "cluster.watch.step_s=15",
        "log.progress=false",
        "log.every_steps=1",
    ]
    run_dir, log = place / "stopped", place / "stopped.log"
    with log.open("w") as out:
        job = subprocess.Popen(
            [sys.executable, *launch(2), *words, f"run_dir={run_dir}"],
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    metrics = run_dir / "metrics.jsonl"
    wait_until(
        lambda: (
            job.poll() is not None or (metrics.exists() and sum("loss" in row for row in read(metrics)) > 4)
        ),
        "steps that are no warm-up",
        log.read_text,
    )
    ranks = ranks_of(job.pid)
    assert len(ranks) == 2, log.read_text()
    os.kill(ranks[1], signal.SIGSTOP)
    assert wait_until(lambda: job.poll() is not None and [job.returncode], "the end", log.read_text) != [0]
    said = log.read_text()
    assert "Rank 1 has given no sign of life for " in said
    logs = run_dir / "logs" / "attempt-1"
    assert list(logs.glob("*.stacks")), "each wrote where it was"
    assert "NCCL's flight recorder: in rank-0.nccl.json" in (logs / "rank-0.stacks").read_text()
    recorded = json.loads((logs / "rank-0.nccl.json").read_bytes())["entries"]
    assert any(entry["profiling_name"].startswith("nccl:") for entry in recorded), (
        "the collectives it knows of"
    )
    wait_until(
        lambda: not any(Path(f"/proc/{pid}").exists() for pid in ranks.values()),
        "no rank left",
        log.read_text,
    )


def ranks_of(launcher: int) -> dict[int, int]:
    """Return the process ids of the ranks below a launcher, by rank."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            stat = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(stat[1]) != launcher:
                continue
            variables = dict(
                word.split("=", 1) for word in (entry / "environ").read_text().split("\0") if "=" in word
            )
        except (OSError, ValueError, IndexError):
            continue
        if "LOCAL_RANK" in variables:
            found[int(variables["LOCAL_RANK"])] = int(entry.name)
    return found
