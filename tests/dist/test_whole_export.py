"""A base that also sees, by the commands that a person gives: refused where its export could not see, or text alone."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.dist.test_adapters import plain_logits
from tests.helpers.multimodal import save_multimodal
from tests.helpers.ranks import run_apart
from tests.helpers.tiny import make_workspace
from trainer.checkpoint.layout import step_dir
from trainer.cli import run_command
from trainer.evaluate.proofs.fingerprint import difference, read_fingerprint

PROCESSOR = "preprocessor_config.json"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a workspace with a base that sees and has no file of a processor."""
    top = tmp_path_factory.mktemp("seeing")
    make_workspace(top)
    save_multimodal(top / "seeing", "gemma3")
    return top


def words_of(folder: Path, run: str, *more: str) -> list[str]:
    words = ["train", "--config", f"{folder}/config.yaml", f"run_dir={folder}/{run}"]
    few = ["train.max_steps=1", "checkpoint.every_steps=1", "evaluate.forgetting=false"]
    return [*words, f"model.path={folder}/seeing", *few, *more]


@pytest.mark.parametrize("more", [[], ["tune.method=lora", "export.merge=true"]])
def test_what_could_not_be_exported_whole_is_refused_before_it_trains(
    folder: Path, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(words_of(folder, "refused", *more)) == 2
    said = capsys.readouterr().err
    assert "`export.text_only` must be true for a base that also sees or hears and has no file of a" in said
    assert "set export.text_only=true, which writes its language model alone" in said
    assert not list((folder / "refused").glob("*.yaml"))


def trained(mesh: Any, words: list[str]) -> int:
    with contextlib.redirect_stdout(io.StringIO()):
        return int(run_command(words))


def test_the_command_writes_the_language_model_alone_with_the_weights_that_were_trained(
    pool: Any, folder: Path
) -> None:
    from safetensors import safe_open

    run, out = folder / "alone", folder / "alone-out"
    words = words_of(folder, "alone", "export.text_only=true", "zero.dtype=fp32")
    assert pool(1).run(trained, words=words) == [0]
    assert run_command(["export", f"run_dir={run}", f"export.output_dir={out}", "export.dtype=float32"]) == 0
    assert json.loads((out / "config.json").read_text())["architectures"] == ["Gemma3ForCausalLM"]
    names: list[str] = []
    for file in out.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            names += tensors.keys()
    assert names and not [name for name in names if "vision" in name or "projector" in name]
    saved = read_fingerprint(step_dir(run, 1) / "fingerprint.safetensors")
    logits = plain_logits(out, saved.tokens_T)[-len(saved.logits_KV) :]
    assert difference(logits, saved.logits_KV) < 1e-4


@pytest.mark.slow
def test_the_language_model_alone_is_trained_exported_and_loads(folder: Path) -> None:
    """And the whole where the files of a processor came later; an export without them is refused as well."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    run_dir = f"run_dir={folder}/run"
    export = ["export", run_dir, "export.output_dir=out"]
    run_apart([words_of(folder, "run", "export.text_only=true"), export], folder)
    assert json.loads((folder / "out/config.json").read_text())["architectures"] == ["Gemma3ForCausalLM"]
    alone: Any = AutoModelForCausalLM.from_pretrained(folder / "out")
    assert run_command(["export", run_dir, "export.text_only=false"]) == 2
    (folder / "seeing" / PROCESSOR).write_text("{}")
    run_apart([[*export[:2], "export.text_only=false", "export.output_dir=whole"]], folder)
    (folder / "seeing" / PROCESSOR).unlink()
    assert (folder / "whole" / PROCESSOR).read_text() == "{}"
    whole: Any = AutoModelForImageTextToText.from_pretrained(folder / "whole")
    ids = torch.arange(20, 40)[None]
    with torch.no_grad():
        answers = [model.eval()(input_ids=ids).logits for model in (alone, whole)]
    torch.testing.assert_close(*answers, rtol=1e-4, atol=1e-4)
