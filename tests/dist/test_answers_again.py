"""Runs of answers with labels that are resumed, and whose reference sums are kept and whose are not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.dist.session import session_of
from tests.dist.test_labelled_answers import config_for, make_data
from tests.dist.test_reference_sums import sums_and_lines
from trainer.checkpoint.layout import STATE, step_dir

KEYS = ("loss", "answer_loss", "loss/text", "grad_norm", "reference_point", "reward_desirable")
ASKED = "Asking the model, as it is before the first step"


@pytest.fixture(scope="module")
def data(pool: Any, workspace: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("again"))
    pool(1).run(make_data, workspace=workspace, data=folder)
    return folder


def train(mesh: Any, workspace: str, data: str, run_dir: str, copy_from: str | None) -> None:
    from trainer.run import training

    if copy_from and mesh.is_first:
        shutil.copytree(step_dir(Path(copy_from), 2), step_dir(Path(run_dir), 2))
    mesh.barrier()
    words = ["zero.stage=1", "checkpoint.every_steps=2", "log.every_steps=1"]
    assert training.run_training(config_for(workspace, data, run_dir, "kto", *words)).value == "finished"


def rows(run_dir: Path) -> dict[int, dict[str, float]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: {key: line[key] for key in KEYS} for line in lines if "loss" in line}


def test_a_resumed_run_of_labelled_answers_is_bitwise_the_same(pool, workspace, data, tmp_path):
    """The point of reference alone differs: it is that of other packs, or of the tuned weights."""
    whole, goes_on = tmp_path / "whole", tmp_path / "goes_on"
    pool(2).run(train, workspace=workspace, data=data, run_dir=str(whole), copy_from=None)
    shutil.rmtree(Path(data) / "cache" / "answer_sums")  # asked again, before the checkpoint is loaded
    pool(2).run(train, workspace=workspace, data=data, run_dir=str(goes_on), copy_from=str(whole))
    wanted = rows(whole)
    assert wanted[4]["reference_point"] > 0, "the point is of no account"
    assert rows(goes_on) == {step: wanted[step] for step in (3, 4)}
    states = [json.loads((step_dir(run_dir, 4) / STATE).read_text()) for run_dir in (whole, goes_on)]
    for state in states:
        del state["attempts"]
    assert states[0] == states[1]


def changed_weights(folder: Path) -> None:
    """Move all weights of a folder by a part in a hundred."""
    from safetensors.torch import load_file, save_file

    (file,) = folder.glob("*.safetensors")
    save_file({name: 1.01 * one for name, one in load_file(file).items()}, file, {"format": "pt"})


def changed_eos(folder: Path) -> None:
    """Let another token end an answer."""
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text())
    config["eos_token"] = config["pad_token"]
    file.write_text(json.dumps(config))


def asked_by(mesh: Any, workspace: str, data: str, run_dir: str) -> dict[str, tuple[list[str], float]]:
    """Return what was said about the reference, and a sum of it, with several models one after the other."""
    from trainer.command.prepare import ensure_inputs

    found = {}
    models = {"own": None, "weights": changed_weights, "eos": changed_eos, "own again": None}
    for name, change in models.items():
        folder = Path(workspace) / "model"
        if change is not None:
            folder = Path(shutil.copytree(folder, Path(run_dir) / f"model_{name}"))
            change(folder)
        config = config_for(workspace, data, f"{run_dir}/{name}", "kto", f"model.path={folder}")
        ensure_inputs(config)
        with session_of(config) as session:
            (sums, refs), lines = sums_and_lines(session)
        found[name] = lines, float(sums.of(refs).sum())
    return found


def test_sums_of_another_base_or_tokenizer_are_not_taken(pool, workspace, data, tmp_path):
    shutil.rmtree(Path(data) / "cache" / "answer_sums", ignore_errors=True)
    (found,) = pool(1).run(asked_by, workspace=workspace, data=data, run_dir=str(tmp_path))
    for name in ("own", "weights", "eos"):
        assert any(line.startswith(ASKED) for line in found[name][0]), name
    assert len({total for _, total in found.values()}) == 3
    again, total = found["own again"]
    assert total == found["own"][1] and not any(line.startswith(ASKED) for line in again)
    assert any("asked again about" in line for line in again)
