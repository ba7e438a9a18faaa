"""The mean of a run's checkpoints, exported: that of whole models, also where an adapter trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.dist.session import train_frozen
from trainer.checkpoint.layout import step_dir
from trainer.checkpoint.shards import open_shards

WORDS = [
    "train.max_steps=6",
    "checkpoint.every_steps=2",
    "checkpoint.keep_last=3",
    "checkpoint.keep_best=false",
    "evaluate.forgetting=false",
    "optim.lr=2e-2",
]


def export(mesh: Any, run_dir: str, words: list[str]) -> dict[str, list[Any]]:
    """Export and return the folder's tensors, and the base's, as numbers."""
    from safetensors.torch import load_file

    from trainer.command.export import export_model
    from trainer.config.snapshot import config_path
    from trainer.config.store import load_config

    config = load_config(config_path(Path(run_dir)), ["export.dtype=float32", *words])
    assert export_model(config) == 0
    found = {}
    for name, folder in (("mean", Path(run_dir) / "export"), ("base", Path(config.model.path))):
        tensors: dict[str, torch.Tensor] = {}
        for file in sorted(folder.glob("*.safetensors")):
            tensors |= load_file(file)
        found[name] = [(key, tensor.tolist()) for key, tensor in sorted(tensors.items())]
    return found


def whole(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    shards = open_shards(step_dir(run_dir, step))
    return {name: shards.whole(name).double() for name in shards.shapes}


def test_the_mean_of_three_checkpoints_is_exported(pool, workspace, tmp_path):
    """Nearer to the last one: checkpoints were weighed, or taken twice."""
    run_dir = tmp_path / "run"
    pool(1).run(train_frozen, workspace=workspace, run_dir=str(run_dir), words=WORDS)
    found = pool(1).run(export, run_dir=str(run_dir), words=["export.average=3"])[0]
    steps = [whole(run_dir, step) for step in (2, 4, 6)]
    mean = dict(found["mean"])
    assert set(mean) == set(steps[0]) and len(mean) > 10
    for name, values in mean.items():
        must = sum(one[name] for one in steps) / 3
        assert (torch.tensor(values).double() - must).abs().max() <= 2.0**-24 * must.abs().max(), name
        assert (must - steps[-1][name]).abs().max() > 1e-4
    card = (run_dir / "export" / "README.md").read_text(encoding="utf-8")
    assert "the mean of 3 checkpoints of the run up to step-00000006" in card


@pytest.mark.slow
def test_an_adapter_is_averaged_as_whole_models(pool, workspace, tmp_path):
    """The product of mean factors is another matrix, by as much as they moved apart."""
    run_dir = tmp_path / "run"
    words = [*WORDS, "tune.method=lora", "tune.r=4"]
    pool(1).run(train_frozen, workspace=workspace, run_dir=str(run_dir), words=words)
    found = pool(1).run(export, run_dir=str(run_dir), words=["export.average=2", "export.merge=true"])[0]
    steps = [whole(run_dir, step) for step in (4, 6)]
    mean, base = dict(found["mean"]), dict(found["base"])
    factors = sorted(name for name in steps[0] if "lora_A" in name)
    assert len(factors) == 14
    for name in factors:
        a, b = ([one[key] for one in steps] for key in (name, name.replace("lora_A", "lora_B")))
        key = f"{name.split('.lora_A')[0]}.weight"
        scale = 8 / 4  # alpha over r
        change = scale * sum(two @ one for one, two in zip(a, b, strict=True)) / 2
        apart = scale * (sum(b) / 2) @ (sum(a) / 2)
        got = torch.tensor(mean[key]).double() - torch.tensor(base[key]).double()
        assert (got - change).abs().max() < 1e-6, key
        assert (apart - change).abs().max() > 1e-4, key
