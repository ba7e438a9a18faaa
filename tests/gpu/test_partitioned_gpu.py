"""Our own steps of ZeRO-2 and 3 on GPUs: the kernel against torch's fused AdamW, the runs against DeepSpeed's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.gpu.test_gpu_paths import BF16_ROUNDING, TEXT, common_overrides, start

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SIZE = 100_003
DEEPSPEEDS_OWN = "zero.extra={zero_optimization: {allgather_partitions: true}}"


@pytest.mark.parametrize("name", ["bfloat16", "float32"])
def test_the_kernel_takes_the_steps_of_torchs_fused_adamw(name):
    from trainer.optim.fused_adamw import take_step

    dtype = getattr(torch, name)
    torch.manual_seed(0)
    begin = torch.randn(SIZE, device="cuda")
    theirs, ours = (torch.nn.Parameter(begin.clone()) for _ in range(2))
    options = {"lr": 1e-3, "betas": (0.9, 0.999), "weight_decay": 0.1, "fused": True}
    reference, optimizer = (torch.optim.AdamW([p], **options) for p in (theirs, ours))
    scale = torch.full((1,), 0.3, device="cuda")
    rounded = torch.empty(SIZE, dtype=dtype, device="cuda")
    for step in range(5):
        gradient = (torch.randn(SIZE, device="cuda") * 10.0**-step).to(dtype)
        theirs.grad = gradient.float() * scale
        reference.step()
        take_step(optimizer, optimizer.param_groups[0], gradient, scale, rounded)
        # A weight moves by some 1e-3 a step; they differ by roundings of weights of some units.
        torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=0, atol=2e-6)
        assert torch.equal(rounded, ours.detach().to(dtype))
        assert float(optimizer.state[ours]["step"]) == step + 1
    for key in ("exp_avg", "exp_avg_sq"):
        torch.testing.assert_close(optimizer.state[ours][key], reference.state[theirs][key])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("micro_batch", [1, 2], ids=["adds up", "one micro-batch"])
def test_two_gpus_learn_as_with_deepspeeds_own_stage(tmp_path: Path, micro_batch: int, stage: int) -> None:
    """A failure points at the stream of the exchange: something is read before it is there."""
    (tmp_path / "corpus.txt").write_text(TEXT, encoding="utf-8")
    losses = []
    for name, words in {"ours": [], "theirs": [DEEPSPEEDS_OWN]}.items():
        own = [
            *("train.global_batch_tokens=8192", f"train.micro_batch_size={micro_batch}", "optim.lr=1e-3"),
            *(f"zero.stage={stage}", "zero.reduce_bucket_size=20000", "checkpoint.enabled=false"),
            *("log.progress=false", f"run_dir={tmp_path / name}"),
        ]
        overrides = [*common_overrides(tmp_path), *own, *words]
        start(["-m", "trainer", "prepare"], overrides)
        start(
            [
                "-m",
                "torch.distributed.run",
                "--standalone",
                "--nproc_per_node",
                "2",
                "-m",
                "trainer",
                "train",
            ],
            overrides,
        )
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        losses.append([row["loss"] for row in rows if "loss" in row])
    ours, theirs = losses
    assert len(ours) == len(theirs) >= 10 and ours[-1] < ours[0]
    for found, expected in zip(ours, theirs, strict=True):
        assert found == pytest.approx(expected, rel=BF16_ROUNDING)
