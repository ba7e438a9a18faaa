"""Experts spread over two GPUs, by grouped products and NCCL, against the same run without that."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.gpu.test_gpu_paths import BF16_ROUNDING, TEXT, common_overrides, start
from tests.helpers.families import FAMILIES
from tests.helpers.tiny_families import tiny_config

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hold a corpus and a mixture of eight experts, with the byte tokenizer."""
    from transformers import AutoModelForCausalLM

    from trainer.model.tiny import build_tokenizer

    path = tmp_path_factory.mktemp("spread")
    (path / "corpus.txt").write_text(TEXT, encoding="utf-8")
    config = tiny_config(FAMILIES["Qwen3-MoE"])
    config.hidden_size, config.moe_intermediate_size, config.num_experts = 256, 128, 8
    config.initializer_range = 0.05
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(path / "mixture")
    build_tokenizer().save_pretrained(path / "mixture")
    start(["-m", "trainer", "prepare"], words_of(path))
    return path


def words_of(place: Path) -> list[str]:
    mixture = ("model.kind=pretrained", f"model.path={place / 'mixture'}")
    return [*common_overrides(place), *mixture, "model.attention=sdpa"]


def losses(place: Path, name: str, *overrides: str) -> list[float]:
    own = [
        *("train.global_batch_tokens=8192", "train.micro_batch_size=2", "optim.lr=1e-3"),
        *("checkpoint.every_steps=6", "log.progress=false", f"run_dir={place / name}"),
    ]
    torchrun = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "trainer",
        "train",
    ]
    start(torchrun, [*words_of(place), *own, *overrides])
    rows = [json.loads(line) for line in (place / name / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


@pytest.mark.parametrize("stage", [1, 2])
def test_spread_experts_learn_as_those_that_are_together(place: Path, stage: int) -> None:
    """A failure points at the grouped products, at NCCL's exchange of tokens, or at reduction beside it."""
    together = losses(place, f"together-{stage}", f"zero.stage={stage}")
    spread = losses(place, f"spread-{stage}", f"zero.stage={stage}", "zero.expert_parallel=2")
    assert len(together) == 12 and together[-1] < together[0]
    for ours, other in zip(spread, together, strict=True):
        assert ours == pytest.approx(other, rel=BF16_ROUNDING)
