"""The GPU paths against the plain one, on one GPU and real processes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.wait import LIMIT_S
from trainer.checkpoint.layout import step_dir

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TEXT = "\n\n".join(
    f"Paragraph {i}: " + "the quick brown fox jumps over the lazy dog. " * (1 + i % 9) for i in range(400)
)
BF16_ROUNDING = 2.0**-8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hold the corpus, its store and the run directories of this file."""
    return prepared(tmp_path_factory.mktemp("gpu_paths"))


def prepared(path: Path) -> Path:
    """Write the corpus into a folder and prepare it."""
    (path / "corpus.txt").write_text(TEXT, encoding="utf-8")
    start(["-m", "trainer", "prepare"], common_overrides(path))
    return path


@pytest.fixture(scope="module")
def plain_losses(folder: Path) -> list[float]:
    """Return the losses of the path without flash attention and fused kernels."""
    plain = losses(folder, "plain", "model.attention=sdpa", "model.kernels=none")
    assert len(plain) == 12 and plain[-1] < plain[0]
    return plain


def common_overrides(folder: Path) -> list[str]:
    return [
        "model=tiny",
        "data=text",
        f"data.sources.corpus.path={folder / 'corpus.txt'}",
        "data.sources.corpus.txt_documents=paragraph",
        "data.seq_len=512",
        f"data.cache_dir={folder / 'cache'}",
        "train.max_steps=12",
    ]


def start(module: list[str], overrides: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, *module, *overrides], capture_output=True, text=True, timeout=LIMIT_S
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]


def losses(folder: Path, name: str, *overrides: str) -> list[float]:
    own = [
        "train.global_batch_tokens=4096",
        "train.micro_batch_size=2",
        "optim.lr=1e-3",
        *([] if any(word.startswith("checkpoint.") for word in overrides) else ["checkpoint.enabled=false"]),
        "log.progress=false",
        f"run_dir={folder / name}",
        *overrides,
    ]
    torchrun = [
        *("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1"),
        *("-m", "trainer", "train"),
    ]
    start(torchrun, [*common_overrides(folder), *own])
    rows = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


@pytest.mark.parametrize(
    "overrides",
    [
        ("model.attention=flash_attention_2", "model.kernels=none"),
        ("model.attention=flash_attention_2", "model.kernels=liger"),
        ("model.attention=auto", "zero=zero2", "model.checkpoint_layers=1", "model.loss_chunk_tokens=100"),
    ],
    ids=["flash", "flash+liger", "flash+liger+zero2+partial"],
)
def test_fast_paths_give_the_losses_of_the_sdpa_path(
    folder: Path, plain_losses: list[float], overrides: tuple[str, ...]
) -> None:
    """A failure points at cu_seq_lens, a fused kernel, or the chunked loss head."""
    fast = losses(folder, "_".join(word.split("=")[1] for word in overrides), *overrides)
    worst = max(abs(a - b) / a for a, b in zip(plain_losses, fast, strict=True))
    print(f"largest relative difference of a loss: {worst:.2e}")
    assert worst <= BF16_ROUNDING


def test_with_deterministic_kernels_a_run_repeats_to_the_last_bit(folder: Path) -> None:
    """A failure points at the backward of flash attention, which adds up in any order unless it is told not to."""
    own = ("deterministic=true", "data.sources.corpus.txt_documents=file", "data.seq_len=2048")
    start(["-m", "trainer", "prepare"], [*common_overrides(folder), *own])
    first, second = (losses(folder, name, "model.attention=auto", *own) for name in ("first", "second"))
    assert first == second


@pytest.mark.parametrize("zero", ["zero2", "zero3"])
def test_a_run_resumed_from_its_middle_ends_as_the_one_that_never_stopped(folder: Path, zero: str) -> None:
    """A failure points at the state of an optimizer or a random generator that is not put back on a GPU."""
    own = (f"zero={zero}", "model.attention=auto", "deterministic=true", "checkpoint.every_steps=6")
    whole = losses(folder, f"whole-{zero}", *own)
    shutil.copytree(step_dir(folder / f"whole-{zero}", 6), step_dir(folder / f"resumed-{zero}", 6))
    assert losses(folder, f"resumed-{zero}", *own) == whole[6:]
