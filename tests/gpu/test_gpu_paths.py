"""The GPU paths against the plain one, on one GPU and real processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TEXT = "\n\n".join(
    f"Paragraph {i}: " + "the quick brown fox jumps over the lazy dog. " * (1 + i % 9) for i in range(400)
)
BF16_ROUNDING = 2.0**-8


def losses(tmp_path: Path, name: str, *overrides: str) -> list[float]:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(TEXT, encoding="utf-8")
    common = [
        "model=tiny",
        "data=text",
        f"data.sources.corpus.path={corpus}",
        "data.sources.corpus.txt_documents=paragraph",
        "data.seq_len=512",
        f"data.cache_dir={tmp_path / 'cache'}",
        "train.global_batch_tokens=4096",
        "train.micro_batch_size=2",
        "train.max_steps=12",
        "optim.lr=1e-3",
        "log.progress=false",
        f"run_dir={tmp_path / name}",
        *overrides,
    ]
    for command in ("prepare", "train"):
        module = (
            ["-m", "trainer", command]
            if command == "prepare"
            else [*("-m", "torch.distributed.run", "--nproc_per_node", "1", "-m", "trainer", "train")]
        )
        done = subprocess.run([sys.executable, *module, *common], capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
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
def test_fast_paths_give_the_losses_of_the_sdpa_path(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    """A failure points at cu_seq_lens, a fused kernel, or the chunked loss head."""
    plain = losses(tmp_path, "plain", "model.attention=sdpa", "model.kernels=none")
    fast = losses(tmp_path, "fast", *overrides)
    assert len(plain) == 12 and plain[-1] < plain[0]
    worst = max(abs(a - b) / a for a, b in zip(plain, fast, strict=True))
    print(f"largest relative difference of a loss: {worst:.2e}")
    assert worst <= BF16_ROUNDING
