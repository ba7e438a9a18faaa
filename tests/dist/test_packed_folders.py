"""A base in blocks of FP8, trained from beginning to end: the steps of the same base in full, and an export that says
what its files hold.
"""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.dist.session import config_of, session_of, take_steps
from tests.dist.test_adapters import plain_logits
from trainer.checkpoint.layout import step_dir

BLOCK = 16
LORA = ["tune.method=lora", "tune.r=4"]


def save_fp8(mesh: Any, folder: str) -> None:
    """Save a model in blocks of FP8 as `fp8`, and what it stands for as `whole`; both by hand."""
    from safetensors.torch import load_file, save_file

    from tests.helpers.tiny import save_llama

    top = Path(folder)
    for name in ("fp8", "whole"):
        save_llama(top / name)
    packed = load_file(top / "whole" / "model.safetensors")
    whole = dict(packed)
    for name in [name for name in whole if "_proj" in name]:
        rows, columns = (size // BLOCK for size in whole[name].shape)
        scales = 2.0 ** -(9 + torch.arange(rows * columns).remainder(3).float().reshape(rows, columns))
        spread = scales.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
        packed[name] = (whole[name] / spread).to(torch.float8_e4m3fn)
        packed[f"{name}_scale_inv"] = scales
        whole[name] = packed[name].float() * spread
    for name, tensors in (("fp8", packed), ("whole", whole)):
        save_file(tensors, top / name / "model.safetensors", metadata={"format": "pt"})
    file = top / "fp8" / "config.json"
    packing = {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK], "activation_scheme": "dynamic"}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": packing}))


@pytest.fixture(scope="module")
def bases(pool: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases")
    pool(1).run(save_fp8, folder=str(folder))
    return folder


def stepped(mesh: Any, workspace: str, run_dir: str, variants: list[list[str]]) -> Any:
    found = []
    for index, words in enumerate(variants):
        with session_of(config_of(workspace, f"{run_dir}/{index}", *words)) as session:
            found.append(take_steps(session, 2))
    return found


def trained_and_exported(mesh: Any, workspace: str, folder: str, words: list[str]) -> Any:
    """Train, export on the first rank, and return what is claimed, what the files hold, and how far logits are."""
    from safetensors import safe_open

    from trainer.command.export import export_model
    from trainer.config.snapshot import freeze
    from trainer.config.tune import TuneMethod
    from trainer.errors import ModelError
    from trainer.evaluate.proofs.fingerprint import difference, read_fingerprint
    from trainer.run import training

    run_dir, exported = Path(folder) / "run", Path(folder) / "export"
    config = config_of(workspace, run_dir, *words, "train.max_steps=2", "checkpoint.every_steps=2")
    if mesh.is_first:
        freeze(config, run_dir)
    assert training.run_training(config).value == "finished"
    if not mesh.is_first:
        return None
    asked = [f"export.output_dir={exported}", "export.dtype=float32"]
    if config.tune.method is TuneMethod.lora:
        with pytest.raises(ModelError, match=r"packed instead \(fp8\)\. Export the adapter alone"):
            export_model(config_of(workspace, run_dir, *words, *asked, "export.merge=true"))
        assert export_model(config_of(workspace, run_dir, *words, *asked, "export.merge=false")) == 0
        return json.loads((exported / "adapter_config.json").read_text()), sorted(
            p.name for p in exported.iterdir()
        )
    assert export_model(config_of(workspace, run_dir, *words, *asked)) == 0
    claimed = json.loads((exported / "config.json").read_text())
    dtypes, names = set(), []
    for file in exported.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            names += tensors.keys()
            dtypes |= {str(tensors.get_tensor(name).dtype) for name in tensors.keys()}  # noqa: SIM118
    saved = read_fingerprint(step_dir(run_dir, 2) / "fingerprint.safetensors")
    logits = plain_logits(exported, saved.tokens_T)[-len(saved.logits_KV) :]
    return claimed, sorted(dtypes), names, difference(logits, saved.logits_KV)


@pytest.mark.parametrize(
    "variants",
    [
        [[*LORA, "zero.stage=1"], ["zero.stage=3"]],
        pytest.param([["zero.stage=1"], [*LORA, "zero.stage=3"]], marks=pytest.mark.slow),
    ],
)
def test_a_base_in_fp8_takes_the_steps_of_the_base_that_it_stands_for(
    pool, workspace, bases, variants, tmp_path
):
    """To the last bit: the base is made whole while it is read."""
    steps = {
        name: pool(2).run(
            stepped,
            workspace=workspace,
            run_dir=str(tmp_path / name),
            variants=[[*words, f"model.path={bases / name}"] for words in variants],
        )[0]
        for name in ("fp8", "whole")
    }
    assert steps["fp8"] == steps["whole"]


def refused(mesh: Any, workspace: str, run_dir: str, base: str, left: int) -> list[Any]:
    """Train with so many bytes left on this machine; return the exit code, what was said, and if weights were read."""
    from transformers import core_model_loading

    from trainer.cli import run_command
    from trainer.run import room

    whole, available = core_model_loading.set_param_for_module, room.bytes_available
    read: list[int] = []
    core_model_loading.set_param_for_module = lambda *given, **more: (read.append(1), whole(*given, **more))[
        1
    ]
    room.bytes_available = lambda: left
    words = [
        "--config",
        f"{workspace}/config.yaml",
        f"run_dir={run_dir}",
        f"model.path={base}",
        "zero.stage=3",
    ]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            code = run_command(["train", *words, "train.max_steps=1", "evaluate.forgetting=false"])
    finally:
        core_model_loading.set_param_for_module, room.bytes_available = whole, available
    return [code, said.getvalue(), bool(read)]


def test_a_base_in_fp8_that_does_not_fit_when_it_is_whole_is_refused_before_it_is_read(
    pool, workspace, bases, tmp_path
):
    """The tiny model takes 0.14 MB in float32, each rank of one machine as much."""
    arguments = {"workspace": workspace, "base": str(bases / "fp8")}
    found = pool(2).run(refused, **arguments, run_dir=str(tmp_path / "short"), left=200_000)
    assert [(code, has_read) for code, _, has_read in found] == [(2, False)] * 2
    said = found[0][1]
    assert "`model.path` must hold weights that fit into memory once they are whole, but those of" in said
    assert "in fp32 on each of 2 ranks instead, and the host memory of" in said
    assert "Set zero.dtype=bf16, or fewer cluster.ranks_per_node, or model.path to a smaller model" in said
    found = pool(2).run(refused, **arguments, run_dir=str(tmp_path / "room"), left=1_000_000)
    assert [(code, has_read) for code, _, has_read in found] == [(0, True)] * 2, found


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_an_export_of_a_base_in_fp8_claims_what_its_files_hold(pool, workspace, bases, stage, tmp_path):
    words = [f"zero.stage={stage}", f"model.path={bases / 'fp8'}"]
    found = pool(2).run(trained_and_exported, workspace=workspace, folder=str(tmp_path), words=words)[0]
    claimed, dtypes, names, moved = found
    assert "quantization_config" not in claimed and claimed["dtype"] == "float32"
    assert dtypes == ["torch.float32"] and not [name for name in names if "scale" in name]
    assert moved < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_an_adapter_of_a_base_in_fp8_names_that_base_and_is_not_merged_into_it(
    pool, workspace, bases, stage, tmp_path
):
    words = [*LORA, f"zero.stage={stage}", f"model.path={bases / 'fp8'}"]
    claimed, files = pool(2).run(
        trained_and_exported, workspace=workspace, folder=str(tmp_path), words=words
    )[0]
    assert claimed["base_model_name_or_path"] == str(bases / "fp8")
    assert "adapter_model.safetensors" in files and "model.safetensors" not in files
