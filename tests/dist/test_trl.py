"""Rung 9: the same model, data and hyper-parameters through TRL, which was not written here."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.dist.session import config_of, session_of, take_steps
from tests.helpers.ranks import ROOT
from tests.helpers.wait import LIMIT_S

NUM_STEPS = 20
SEQ_LEN = 64
LOSS, GRAD_NORM = 1e-5, 1e-5
"""Absolute nats, and relative. Both sides compute in fp32 and sum in another order; TRL clips with torch's
function, we with DeepSpeed's, and twenty steps of Adam carry the differences on. Measured: 5e-7 and 3e-7."""


def write_equal_documents(path: Path) -> None:
    """Write documents of exactly one pack, so that both sides see the same rows; masks are ragged."""
    rng = np.random.default_rng(3)
    rows = []
    for index in range(4 * NUM_STEPS):
        ids = np.where(rng.random(SEQ_LEN) < 0.5, 7, rng.integers(4, 264, SEQ_LEN)).tolist()
        supervised = [2, 9, 30, SEQ_LEN][index % 4]
        rows.append({"input_ids": ids, "loss_mask": [0] * (SEQ_LEN - supervised) + [1] * supervised})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def ours(mesh: Any, workspace: str, folder: str) -> list[dict[str, float]]:
    from trainer.command.prepare import ensure_inputs

    base = config_of(
        workspace,
        f"{folder}/run",
        "data.shuffle=false",
        "data.validation_frac=0",
        "train.micro_batch_size=2",
        "schedule.name=constant",
        "schedule.warmup_steps=0",
        "optim.decay_embeddings=true",
        "zero.stage=2",
    )
    source = dataclasses.replace(base.data.sources["chat"], path=f"{folder}/documents.jsonl")
    data = dataclasses.replace(base.data, sources={"chat": source}, cache_dir=f"{folder}/cache")
    config = dataclasses.replace(base, data=data)
    ensure_inputs(config)
    with session_of(config) as session:
        assert session.stores["chat"].train.num_packs == 4 * NUM_STEPS
        return take_steps(session, NUM_STEPS, total=NUM_STEPS)


def options_of_trl(output: Path, num_steps: int) -> dict[str, Any]:
    """Return what a trainer of TRL is told in every comparison: our optimizer, on a processor, in the order of rows."""
    return dict(
        output_dir=str(output.parent / "trl"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        max_steps=num_steps,
        learning_rate=2e-3,
        lr_scheduler_type="constant",
        warmup_steps=0,
        optim="adamw_torch",
        adam_beta1=0.9,
        adam_beta2=0.95,
        adam_epsilon=1e-8,
        weight_decay=0.1,
        max_grad_norm=1.0,
        train_sampling_strategy="sequential",
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


def train_with_trl(model: Path, documents: Path, output: Path) -> None:
    """Train with SFTTrainer in this process and write loss and gradient norm of every step."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    rows = [json.loads(line) for line in documents.read_text().splitlines()]
    dataset = Dataset.from_list(
        [{"input_ids": row["input_ids"], "completion_mask": row["loss_mask"]} for row in rows]
    )
    arguments = SFTConfig(
        **options_of_trl(output, NUM_STEPS),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_length=SEQ_LEN,
        packing=False,
        completion_only_loss=True,
    )
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        args=arguments,
        train_dataset=dataset,
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    trainer.train()
    history = [record for record in trainer.state.log_history if "loss" in record]
    records = [{key: float(record[key]) for key in ("loss", "grad_norm")} for record in history]
    output.write_text(json.dumps(records))


def by_trl(module: str, workspace: str, data: Path, output: Path) -> Any:
    """Return what `train_with_trl` of a module of this folder writes, run in a process of its own."""
    places = ", ".join(f"Path({str(place)!r})" for place in (f"{workspace}/model", data, output))
    code = (
        f"from pathlib import Path; from tests.dist.{module} import train_with_trl; train_with_trl({places})"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(output.read_text())


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed: extra `test`")
@pytest.mark.slow
def test_twenty_steps_equal_those_of_trl_on_the_same_batches(pool, workspace, tmp_path):
    """The first step differs: labels are shifted or masked otherwise, or the loss is not a mean over the
    supervised tokens of the whole step. Later ones only: optimizer, decay groups, clipping or learning rate.
    """
    documents, output = tmp_path / "documents.jsonl", tmp_path / "trl.json"
    write_equal_documents(documents)
    expected = by_trl("test_trl", workspace, documents, output)
    actual = pool(1).run(ours, workspace=workspace, folder=str(tmp_path))[0]
    assert len(actual) == len(expected) == NUM_STEPS
    losses = [abs(a["loss"] - e["loss"]) for a, e in zip(actual, expected, strict=True)]
    norms = [abs(a["grad_norm"] / e["grad_norm"] - 1) for a, e in zip(actual, expected, strict=True)]
    print(f"largest difference: loss {max(losses):.2e}, gradient norm {max(norms):.2e}")
    assert max(losses) <= LOSS and max(norms) <= GRAD_NORM
    assert expected[-1]["loss"] < expected[0]["loss"] - 0.3
