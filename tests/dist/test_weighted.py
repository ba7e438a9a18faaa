"""Weighted losses of a run against plain torch, which takes the weights from the rows and not from our stores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.dist.session import config_of, loader_of, plain_adamw, session_of
from tests.dist.test_zero import FP32, assert_close, cosine, documents_of
from tests.helpers.tiny import write_documents

NUM_STEPS = 4
WEIGHTS = (1.0, 0.25, 3.0, 0.0, 0.1)
LORA = ("tune.method=lora", "tune.r=4")


def config_for(workspace: str, data: str, run_dir: str | Path, *overrides: str) -> Any:
    sources = [
        f"data.sources.{name}.{rest}"
        for name in ("chat", "text")
        for rest in (f"path={data}/{name}.jsonl", "packing=best_fit", "columns.loss_mask=loss_mask")
    ]
    own = ("objective.kind=weighted", "data.values=[weight]", f"data.cache_dir={data}/cache")
    return config_of(workspace, run_dir, *sources, *own, f"train.max_steps={NUM_STEPS}", *overrides)


def make_data(mesh: Any, workspace: str, data: str) -> None:
    from trainer.command.prepare import prepare_data

    for seed, name in enumerate(("chat", "text")):
        path = Path(data) / f"{name}.jsonl"
        write_documents(path, 70, seed=60 + seed, ragged=True)
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for number, row in enumerate(rows):
            row["weight"] = WEIGHTS[number % len(WEIGHTS)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare_data(config_for(workspace, data, Path(data) / "unused"))


@pytest.fixture(scope="module")
def data(pool: Any, workspace: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("weighted"))
    pool(1).run(make_data, workspace=workspace, data=folder)
    return folder


def plain_steps(mesh: Any, workspace: str, data: str, run_dir: str) -> list[dict[str, float]]:
    """Train with nothing of ours but which rows a step has: every document alone, its weight from its row."""
    from transformers import AutoModelForCausalLM

    with session_of(config_for(workspace, data, run_dir)) as session:
        documents = documents_of(session, NUM_STEPS)
    rows = [json.loads(line) for name in ("chat", "text") for line in (Path(data) / f"{name}.jsonl").open()]
    weight_of = {tuple(row["input_ids"]): row["weight"] for row in rows}
    model = AutoModelForCausalLM.from_pretrained(Path(workspace) / "model", dtype=torch.float32)
    optimizer = plain_adamw(model)
    records = []
    for step in range(NUM_STEPS):
        packs = [(tokens, torch.tensor(labels)) for tokens, labels in documents[str(step)]]
        assert all(weight_of[tuple(tokens)] > 0 for tokens, _ in packs), "a row of weight 0 was learnt"
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * ((step + 1) / 2 if step < 2 else cosine((step - 2) / (NUM_STEPS - 2), 0.1))
        total = sum(weight_of[tuple(tokens)] * int((labels != -100).sum()) for tokens, labels in packs)
        loss_sum = 0.0
        for tokens, labels in packs:
            logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
            loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
            loss = loss * weight_of[tuple(tokens)]
            (loss / total).backward()
            loss_sum += float(loss)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        records.append({"loss": loss_sum / total, "grad_norm": float(norm)})
    return records


def take_steps(session: Any, objective: Any) -> list[dict[str, float]]:
    from trainer.optim.schedule import lr_factor
    from trainer.run.step import train_step

    config, loader, records = session.config, loader_of(session), []
    for step in range(NUM_STEPS):
        session.policy.engine.set_lr(config.optim.lr * lr_factor(step, NUM_STEPS, config.schedule))
        result = train_step(session.policy, objective, loader.read(step), stop=lambda: False)
        assert result.is_sound
        by_source = {mean.name: mean.of(result.sums) for mean in result.means}
        assert set(by_source) == {"loss", "loss/chat", "loss/text"}
        records.append({"loss": result.loss, "grad_norm": result.grad_norm})
    loader.close()
    return records


def trained(mesh: Any, workspace: str, data: str, run_dir: str, variants: list[list[str]]) -> Any:
    from trainer.objective.build import build_objective

    found = []
    for index, overrides in enumerate(variants):
        with session_of(config_for(workspace, data, f"{run_dir}/{index}", *overrides)) as session:
            units = [store.train.unit for store in session.stores.values()]
            objective = build_objective(session.config.objective, list(session.stores), units)
            found.append(take_steps(session, objective))
    return found


@pytest.mark.parametrize("num_ranks", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_weighted_steps_are_those_of_plain_torch_at_every_stage(pool, workspace, data, num_ranks, tmp_path):
    """Two ranks alone off: the sum of weights is not that of all ranks. Accumulated alone: nor of all micro-batches."""
    run_dir = str(tmp_path / "plain")
    expected = pool(1).run(plain_steps, workspace=workspace, data=data, run_dir=run_dir)[0]
    variants = [[f"zero.stage={stage}", f"train.micro_batch_size={1 + stage % 2}"] for stage in range(4)]
    answers = pool(num_ranks).run(
        trained, workspace=workspace, data=data, run_dir=str(tmp_path / "ours"), variants=variants
    )
    for answer in answers:
        for records in answer:
            assert_close(records, expected, FP32, 10 * FP32)


def equal_weights(mesh: Any, workspace: str, run_dir: str) -> Any:
    """Return the steps of the plain loss, and those of the weighted one with the same weight everywhere."""
    from trainer.objective.causal_lm.cross_entropy import CausalLMObjective
    from trainer.objective.weighted.weighted_loss import WeightedObjective

    class Same(WeightedObjective):
        def counts(self, batch: Any) -> Any:
            by_source = {f"weight/{name}": 2.5 * n for name, n in batch.num_targets_by_source.items()}
            return {"weight": 2.5 * batch.num_targets_global} | by_source

        def terms(self, policy: Any, micro: Any, sums: Any) -> Any:
            micro.values_BT["weight"] = np.full(micro.labels_BT.shape, 2.5, dtype=np.float32)
            return super().terms(policy, micro, sums)

    found = []
    for kind in (CausalLMObjective, Same):
        with session_of(config_of(workspace, f"{run_dir}/{kind.__name__}", *LORA)) as session:
            found.append(take_steps(session, kind(list(session.stores))))
    return found


def test_one_weight_for_all_is_the_plain_loss_whatever_it_is(pool, workspace, tmp_path):
    plain, same = pool(1).run(equal_weights, workspace=workspace, run_dir=str(tmp_path))[0]
    assert_close(same, plain, FP32, 10 * FP32)


def whole_run(mesh: Any, workspace: str, data: str, run_dir: str) -> None:
    from trainer.run import training

    assert training.run_training(config_for(workspace, data, run_dir, "zero.stage=2")).value == "finished"


def test_a_run_with_weights_trains_saves_and_reports(pool, workspace, data, tmp_path):
    pool(2).run(whole_run, workspace=workspace, data=data, run_dir=str(tmp_path))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line for line in lines if "loss" in line]
    assert len(losses) == NUM_STEPS and all({"loss/chat", "loss/text"} <= set(line) for line in losses)
    assert (tmp_path / "report.html").is_file() and (tmp_path / "checkpoints" / "step-00000004").is_dir()
