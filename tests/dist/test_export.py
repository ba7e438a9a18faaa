"""Rung 5: what is exported is what was trained, and a tampered checkpoint is not exported."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import metadata_load

from tests.dist.session import config_of
from tests.dist.test_resume import commit_other_weights
from tests.helpers.hub_server import connected_hub
from trainer.checkpoint.layout import FINGERPRINT, step_dir
from trainer.cli import run_command
from trainer.command.exported import export_notes
from trainer.errors import SelfCheckError

ROUNDING = 4 * 2.0**-8
"""Four units in the last place of bf16, of the largest logit: each layer of the reloaded model rounds anew."""


def train(mesh: Any, workspace: str, run_dir: str, overrides: list[str]) -> None:
    from trainer.config.snapshot import freeze
    from trainer.run import training

    config = config_of(workspace, run_dir, "zero.dtype=bf16", "train.max_steps=2", *overrides)
    if mesh.is_first:
        freeze(config, Path(run_dir))
    assert training.run_training(config).value == "finished"


def export(mesh: Any, run_dirs: list[str], dtype: str) -> list[dict[str, Any]]:
    """Export runs, reload the folders by transformers alone and compare with what training computed."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trainer.command.export import export_model
    from trainer.config.store import load_config

    found = []
    for run_dir in run_dirs:
        config = load_config(Path(run_dir) / "config.yaml", [f"export.dtype={dtype}"])
        code = export_model(config)
        folder = Path(run_dir) / "export"
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
        saved = load_file(step_dir(Path(run_dir), 2) / FINGERPRINT)
        with torch.no_grad():
            logits = model(input_ids=saved["tokens"][None]).logits[0, -len(saved["logits"]) :].float()
        base = AutoModelForCausalLM.from_pretrained(config.model.path, dtype=torch.float32).eval()
        with torch.no_grad():
            before = base(input_ids=saved["tokens"][None]).logits[0, -len(saved["logits"]) :]
        scale = float(saved["logits"].abs().max())
        found.append(
            {
                "code": code,
                "dtype": str(model.dtype),
                "moved": float((logits - saved["logits"]).abs().max()) / scale,
                "trained": float((before - saved["logits"]).abs().max()) / scale,
                "tied": model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr(),
                "names": sorted(n for f in folder.glob("*.safetensors") for n in load_file(f)),
                "vocabulary": len(AutoTokenizer.from_pretrained(folder)),
            }
        )
    return found


RUNS = {
    "stage 0": (1, ["zero.stage=0", "train.micro_batch_size=4"], "model"),
    "stage 0, tied": (1, ["zero.stage=0", "train.micro_batch_size=4"], "tied"),
    "stage 1": (2, ["zero.stage=1"], "model"),
    "stage 2, tied": (2, ["zero.stage=2"], "tied"),
    "stage 3": (2, ["zero.stage=3"], "model"),
    "stage 3, tied": (2, ["zero.stage=3"], "tied"),
}


@pytest.fixture(scope="module")
def runs(pool: Any, workspace: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("runs")
    for name, (num_ranks, overrides, model) in RUNS.items():
        pool(num_ranks).run(
            train,
            workspace=workspace,
            run_dir=str(folder / name.replace(", ", "-").replace(" ", "-")),
            overrides=[*overrides, f"model.path={workspace}/{model}", "optim.lr=0.01"],
        )
    return {name: str(folder / name.replace(", ", "-").replace(" ", "-")) for name in RUNS}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_reloaded_export_answers_as_the_trained_model_did(pool, runs, dtype):
    """Far off: shards are put together in a wrong order, or stale bf16 weights are exported. Only tied models
    fail: the output layer is written twice or not tied again.
    """
    for name, found in zip(
        runs, pool(1).run(export, run_dirs=list(runs.values()), dtype=dtype)[0], strict=True
    ):
        assert found["code"] == 0, name
        assert found["moved"] <= ROUNDING < found["trained"], (name, found)
        assert found["dtype"] == f"torch.{dtype}", name
        assert found["tied"] == ("tied" in name), name
        assert ("lm_head.weight" in found["names"]) == ("tied" not in name), name
        assert len(found["names"]) == (20 if "tied" in name else 21), name
        assert found["vocabulary"] == 260, name


def export_tampered(mesh: Any, run_dir: str, folder: str) -> list[Any]:
    """Return what the command line says of a flipped bit, and what export says of other weights."""
    from trainer.command.export import export_model
    from trainer.config.store import load_config

    flipped, other = Path(folder) / "flipped", Path(folder) / "other"
    for copy in (flipped, other):
        shutil.copytree(run_dir, copy, ignore=shutil.ignore_patterns("export"))
    shard = step_dir(flipped, 2) / "shards" / "rank-00000.safetensors"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(bytes(content))
    ranks = {key: os.environ.pop(key) for key in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    try:
        code = run_command(["export", f"run_dir={flipped}"])
    finally:
        os.environ.update(ranks)
    shutil.copytree(step_dir(other, 2), step_dir(other, 6))
    commit_other_weights(other, mesh)
    with pytest.raises(SelfCheckError) as caught:
        export_model(load_config(other / "config.yaml", [f"run_dir={other}"]))
    return [code, (flipped / "export").exists(), str(caught.value)]


def test_a_tampered_checkpoint_is_not_exported(pool, runs, tmp_path):
    """A pass of the flipped bit: shards are read without their digests. A pass of the other weights: the
    reloaded folder is not compared with what training computed.
    """
    code, is_exported, message = pool(1).run(export_tampered, run_dir=runs["stage 0"], folder=str(tmp_path))[
        0
    ]
    assert code == 2 and not is_exported
    assert "must give the trained model's logits within twice what rounding does" in message


@pytest.mark.slow
def test_two_trained_adapters_are_exported_as_one(pool, workspace, tmp_path, monkeypatch, capsys):
    """Two runs by their directories, one of them as an exported folder as well; the sum in the logits."""
    lora = ["tune.method=lora", "tune.r=4", "optim.lr=0.05"]
    for name, seed in (("a", 1), ("b", 2)):
        words = [*lora, f"seed={seed}"]
        pool(1).run(train, workspace=workspace, run_dir=str(tmp_path / name), overrides=words)
    monkeypatch.chdir(tmp_path)
    assert run_command(["export", "run_dir=b", "export.output_dir=b-alone", "export.dtype=float32"]) == 0
    exact = ["export.dtype=float32", "export.weights=[1.0,1.0]"]
    assert run_command(["export", "adapters=[a,b]", "export.output_dir=both", *exact]) == 0
    assert "An adapter of rank 8 on 14 modules" in capsys.readouterr().out
    words = ["export", "adapters=[a,b-alone]", "export.output_dir=whole", "export.merge=true", *exact]
    assert run_command(words) == 0
    words = ["export", "adapters=[a,b]", "export.output_dir=pushed", "export.hub=my-org/pushed"]
    assert run_command(words) == 2
    assert "Set export.hub_base=ORG/NAME, where others find the base" in capsys.readouterr().err
    with connected_hub(monkeypatch) as hub:
        assert run_command([*words, "export.hub_base=my-org/base"]) == 0
        described = json.loads(hub.files("my-org/pushed")["adapter_config.json"])
    assert described["base_model_name_or_path"] == "my-org/base"
    head = metadata_load(tmp_path / "pushed" / "README.md")
    assert (head["library_name"], head["base_model_relation"]) == ("peft", "adapter")
    noted = {run: [one.folder.name for one in export_notes(tmp_path / run)] for run in ("a", "b")}
    assert noted == {"a": ["both", "pushed", "whole"], "b": ["b-alone", "both", "pushed"]}
    found = {name: plain_weights(tmp_path / name) for name in ("both", "whole")}
    assert found["both"].keys() == found["whole"].keys()
    moved = [float((found["both"][name] - tensor).abs().max()) for name, tensor in found["whole"].items()]
    assert max(moved) < 1e-5
    base = plain_weights(Path(workspace) / "model")
    assert any((base[name] - tensor).abs().max() > 1e-3 for name, tensor in found["whole"].items())


def test_an_export_is_pushed_as_it_was_verified_and_not_made_again(runs, tmp_path, monkeypatch, capsys):
    """The first push meets a full hub; the second sends the same folder, without writing it again."""
    words = ["export", f"run_dir={runs['stage 0']}", f"export.output_dir={tmp_path / 'mine'}"]
    words += ["export.hub=my-org/mine", "export.hub_base=my-org/base"]
    with connected_hub(monkeypatch) as hub:
        hub.uploads_left = 0
        assert run_command(words) == 2
        assert "answers 507" in capsys.readouterr().err
        hub.uploads_left = None
        assert run_command(words) == 0
        said, held = capsys.readouterr().out, hub.files("my-org/mine")
    assert "holds step-00000002, exported and verified before" in said and "tensors written" not in said
    names = {path.name for path in (tmp_path / "mine").iterdir()} - {".verified.json"}
    assert held.keys() - {".gitattributes"} == names >= {"README.md", "config.json", "tokenizer.json"}
    card = held["README.md"].decode()
    assert metadata_load(tmp_path / "mine" / "README.md")["base_model"] == "my-org/base"
    assert "tensors written and read back. The trained model's logits are" in card
    assert str(tmp_path) not in card and runs["stage 0"] not in card
    assert run_command([*words, "export.verify=false"]) == 2


def plain_weights(folder: Path) -> dict[str, Any]:
    """Return all weights as transformers or peft loads and merges them."""
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    if (folder / "adapter_config.json").exists():
        tuned: Any = AutoPeftModelForCausalLM.from_pretrained(folder)
        return dict(tuned.merge_and_unload().state_dict())
    return dict(AutoModelForCausalLM.from_pretrained(folder).state_dict())
