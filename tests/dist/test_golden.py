"""Rung 7: every recorded loss of small runs is what it was, to the last bit.

A failure after a change that should not touch the numbers says that it does; `python -m tests.dist.test_golden` writes
the values anew where they are meant to change, and the commit says why. They hold for one arithmetic: a digest of a few
sums and products tells whether this processor and this torch round alike. Elsewhere the values must be those of another
arithmetic within rounding, which found bitsandbytes unpacking wrongly on one kind of processor.
"""

from __future__ import annotations

import functools
import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.dist.session import config_of, make_inputs
from tests.helpers.tiny import write_documents

FILE = Path(__file__).resolve().parents[1] / "golden" / "losses.json"
STEPS = 5
FP32_ROUNDING, BF16_ROUNDING = 1e-5, 1e-2
"""Of a value. Between an AVX2 and an AVX-512 processor they differed by up to 3e-7 and 1.1e-3."""
REPLAY = (
    "data.sources.old.role=replay",
    "data.sources.old.format=ids",
    "data.sources.old.columns.loss_mask=loss_mask",
    "replay.ratio=0.4",
)
LORA = ("tune.method=lora", "tune.r=4", "optim.lr=0.01")
RUNS = {
    "full_zero0_fp32": ("zero.stage=0",),
    "full_zero1_bf16": ("zero.stage=1", "zero.dtype=bf16"),
    "full_zero2_fp32_accumulated": ("zero.stage=2", "train.micro_batch_size=1"),
    "full_zero3_bf16_recomputed": ("zero.stage=3", "zero.dtype=bf16", "model.checkpoint_layers=1"),
    "replay_zero2_fp32": ("zero.stage=2", *REPLAY),
    "replay_kl_zero3_fp32": ("zero.stage=3", *REPLAY, "replay.kl.beta=3.0"),
    "lora_zero1_bf16": ("zero.stage=1", "zero.dtype=bf16", *LORA),
    "lora_replay_kl_zero2_fp32": ("zero.stage=2", *LORA, *REPLAY, "replay.kl.beta=3.0"),
    "qlora_zero1_bf16": ("zero.stage=1", "zero.dtype=bf16", *LORA, "tune.quantise=nf4"),
    "dora_zero3_fp32": ("zero.stage=3", *LORA, "tune.dora=true"),
    "prefix_zero2_fp32": ("zero.stage=2", "tune.method=prefix", "optim.lr=0.01"),
}

QUICK = (
    "full_zero2_fp32_accumulated",
    "full_zero3_bf16_recomputed",
    "lora_zero1_bf16",
    "qlora_zero1_bf16",
    "replay_kl_zero3_fp32",
)
"""Those of the default suite: every stage but 0, both types, every kind of part of the loss."""


def arithmetic() -> str:
    """Return a digest of how this processor and this torch round."""
    import torch

    said = torch.__version__
    for dtype in (torch.float32, torch.bfloat16):
        generator = torch.Generator().manual_seed(0)
        a, b = (torch.randn(192, 192, generator=generator).to(dtype) for _ in range(2))
        for made in (a @ b, torch.softmax(a, -1), torch.nn.functional.silu(a), a.sum(0)):
            said += hashlib.sha256(made.float().numpy().tobytes()).hexdigest()
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def train_all(mesh: Any, workspace: str, folder: str, names: list[str]) -> dict[str, Any]:
    """Train every run and return what each step of it recorded."""
    from trainer.command.prepare import prepare_data
    from trainer.run import training

    old = Path(folder) / "old.jsonl"
    if mesh.is_first:
        write_documents(old, 60, 50, ragged=True)
    mesh.barrier()
    found: dict[str, Any] = {"arithmetic": arithmetic()}
    for name in names:
        overrides = [*RUNS[name], f"train.max_steps={STEPS}", "evaluate.every_steps=2", "log.every_steps=1"]
        if REPLAY[0] in overrides:
            overrides.append(f"data.sources.old.path={old}")
        run_dir = Path(folder) / name
        config = config_of(workspace, run_dir, *overrides)
        if mesh.is_first:
            run_dir.mkdir(parents=True)
            prepare_data(config)
        mesh.barrier()
        assert training.run_training(config).value == "finished"
        lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        found[name] = {
            key: [line[key] for line in lines if key in line]
            for key in ("loss", "loss_total", "grad_norm", "eval_mean")
        }
    return found


@pytest.fixture(scope="module")
def trained_once(pool: Any, workspace: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a function that trains some runs, all in one go, the first time it is asked for them."""

    def train(names: tuple[str, ...]) -> dict[str, Any]:
        folder = str(tmp_path_factory.mktemp("golden"))
        found: dict[str, Any] = pool(2).run(
            train_all, 600, workspace=workspace, folder=folder, names=list(names)
        )[0]
        return found

    return functools.cache(train)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in sorted(RUNS)]
)
def test_every_recorded_loss_is_what_it_was_to_the_last_bit(name: str, trained_once: Any) -> None:
    trained = trained_once(QUICK if name in QUICK else tuple(sorted({*RUNS} - {*QUICK})))
    golden = json.loads(FILE.read_text())
    recorded = golden.get(trained["arithmetic"], {}).get(name)
    assert len(trained[name]["loss"]) == STEPS and len(trained[name]["eval_mean"]) >= 2
    if recorded is not None:
        assert trained[name] == recorded
        return
    others = [one[name] for one in golden.values() if name in one]
    assert others, f"no values of {name}: run `python -m tests.dist.test_golden`"
    rounding = FP32_ROUNDING if "fp32" in name else BF16_ROUNDING
    for other in others:
        for key, values in other.items():
            assert trained[name][key] == pytest.approx(values, rel=rounding), key


def write_golden() -> None:
    """Train all runs and write their values for this arithmetic, beside those of others."""
    from tests.helpers.ranks import Ranks

    with tempfile.TemporaryDirectory() as folder:
        workspace, runs = Path(folder) / "workspace", Path(folder) / "runs"
        workspace.mkdir()
        runs.mkdir()
        ranks = Ranks(2, Path(folder) / "ranks")
        try:
            ranks.run(make_inputs_once, folder=str(workspace))
            found = ranks.run(train_all, 600, workspace=str(workspace), folder=str(runs), names=sorted(RUNS))
        finally:
            ranks.close()
    golden = json.loads(FILE.read_text()) if FILE.exists() else {}
    golden[found[0].pop("arithmetic")] = found[0]
    FILE.write_text(json.dumps(golden, indent=1, sort_keys=True) + "\n")


def make_inputs_once(mesh: Any, folder: str) -> None:
    """Make the workspace on the first rank."""
    if mesh.is_first:
        make_inputs(mesh, folder)
    mesh.barrier()


if __name__ == "__main__":
    write_golden()
