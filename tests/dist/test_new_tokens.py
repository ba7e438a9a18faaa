"""New tokens beside LoRA: the steps of plain peft on a resized model, resume, export with the tokenizer, merge."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.dist.session import config_of, session_of, take_steps
from tests.dist.test_adapters import exported, losses
from tests.dist.test_zero import FP32, NUM_STEPS, assert_close, documents_of, plain_steps
from trainer.checkpoint.layout import step_dir

NEW = ["<tool>", "<end>", "<a>", "<b>", "<c>", "<d>"]
"""The models' matrices have room for four more tokens, so that two stand behind them."""
METHOD = ["tune.method=lora", "tune.r=4", f"model.new_tokens={NEW}"]


def make_data(mesh: Any, workspace: str, data: str) -> None:
    from trainer.command.prepare import prepare_data

    rows = [{"text": f"Ask {i} <tool>{i} times {i % 7}<end> and go on. " * (1 + i % 3)} for i in range(80)]
    Path(data, "tools.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for model in ("model", "tied"):
        prepare_data(config_of_tools(workspace, data, model, f"{data}/unused"))


def config_of_tools(workspace: str, data: str, model: str, run_dir: str, *words: str) -> Any:
    from trainer.config.data import Format, SourceConfig

    base = [f"model.path={workspace}/{model}", f"data.cache_dir={data}/cache"]
    config = config_of(workspace, run_dir, *METHOD, *base, *words)
    config.data.sources = {"tools": SourceConfig(path=f"{data}/tools.jsonl", format=Format.text)}
    return config


@pytest.fixture(scope="module")
def data(pool: Any, workspace: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("tools"))
    pool(1).run(make_data, workspace=workspace, data=folder)
    return folder


def plain_peft(session: Any, workspace: str, model: str) -> list[dict[str, float]]:
    """Train with plain peft on a resized model: nothing of ours but the batches and the first rows."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    new = session.tokenizer.new
    plain: Any = AutoModelForCausalLM.from_pretrained(Path(workspace) / model, dtype=torch.float32)
    num_rows = max(new.ids[-1] + 1, plain.config.vocab_size)
    plain.resize_token_embeddings(num_rows, mean_resizing=False)
    layers = [plain.get_input_embeddings()]
    layers += [] if model == "tied" else [plain.get_output_embeddings()]
    for layer in layers:
        for index, pieces in zip(new.ids, new.pieces, strict=True):
            layer.weight.data[index] = layer.weight.data[list(pieces)].mean(dim=0)
    names = ["embed_tokens"] if model == "tied" else ["embed_tokens", "lm_head"]
    linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    torch.manual_seed(0)
    tuned = get_peft_model(
        plain,
        LoraConfig(
            r=4,
            lora_alpha=8,
            target_modules=linear,
            task_type="CAUSAL_LM",
            trainable_token_indices=dict.fromkeys(names, new.ids),
        ),
    )
    trains = {name: p for name, p in tuned.named_parameters() if p.requires_grad}
    embeddings = [p for name, p in trains.items() if "embed_tokens" in name]
    rest = [p for name, p in trains.items() if "embed_tokens" not in name]
    groups = [{"params": rest, "weight_decay": 0.1}, {"params": embeddings, "weight_decay": 0.0}]
    return plain_steps(tuned, groups, documents_of(session, NUM_STEPS), NUM_STEPS)


def expected_steps(mesh: Any, workspace: str, data: str, model: str, run_dir: str) -> Any:
    with session_of(config_of_tools(workspace, data, model, run_dir)) as session:
        return plain_peft(session, workspace, model)


def trained(mesh: Any, workspace: str, data: str, model: str, run_dir: str, stages: list[int]) -> Any:
    results = []
    for stage in stages:
        config = config_of_tools(workspace, data, model, f"{run_dir}/{stage}", f"zero.stage={stage}")
        with session_of(config) as session:
            results.append(take_steps(session, NUM_STEPS))
    return results


@pytest.mark.parametrize("model", ["model", pytest.param("tied", marks=pytest.mark.slow)])
def test_new_tokens_take_the_steps_of_plain_peft(pool, workspace, data, model, tmp_path):
    """One stage off: rows are not reduced, or not one parameter where the head is tied. All off: the rows are not read
    or written where peft has them.
    """
    where = {"workspace": workspace, "data": data, "model": model}
    (expected,) = pool(1).run(expected_steps, run_dir=str(tmp_path / "plain"), **where)
    stages = [0, 1, 2, 3] if model == "tied" else [1, 3]
    results = pool(2).run(trained, run_dir=str(tmp_path), stages=stages, **where)
    for stage, records in zip(stages, results[0], strict=True):
        print(f"stage {stage}")
        assert_close(records, expected, FP32, FP32 * 10)


def train_and_resume(mesh: Any, workspace: str, data: str, model: str, folder: str) -> None:
    from trainer.config.snapshot import freeze
    from trainer.run import training

    words = [
        "train.max_steps=6",
        "checkpoint.every_steps=3",
        "zero.dtype=bf16",
        "optim.lr=0.01",
        "zero.stage=3",
    ]
    for name in ("whole", "resumed"):
        run_dir = Path(folder) / name
        if name == "resumed" and mesh.is_first:
            shutil.copytree(step_dir(Path(folder) / "whole", 3), step_dir(run_dir, 3))
        mesh.barrier()
        config = config_of_tools(workspace, data, model, str(run_dir), *words)
        if mesh.is_first:
            freeze(config, run_dir)
        assert training.run_training(config).value == "finished"


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tied", "model"])
def test_new_tokens_resume_bitwise_and_leave_with_their_tokenizer(pool, workspace, data, model, tmp_path):
    """The logits that plain peft gives come from a base that it resized for the exported tokenizer."""
    where = {"workspace": workspace, "data": data, "model": model}
    pool(2).run(train_and_resume, folder=str(tmp_path), **where)
    whole, resumed = losses(tmp_path / "whole"), losses(tmp_path / "resumed")
    assert sorted(resumed) == [4, 5, 6] and {step: whole[step] for step in resumed} == resumed
    for merge in (False, True):
        code, moved, names, *_ = pool(1).run(exported, run_dir=str(tmp_path / "resumed"), merge=merge)[0]
        assert code == 0 and moved < 0.02, (merge, moved)
        rows = [name for name in names if name.endswith(".rows")]
        assert len(rows) == (1 if model == "tied" else 2)
        assert all(".lora_" in name for name in names if name not in rows)
        vocabulary = json.loads((tmp_path / f"resumed/export-{merge}/tokenizer.json").read_text())
        assert {token["content"] for token in vocabulary["added_tokens"]} >= set(NEW)
