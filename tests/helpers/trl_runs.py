"""Runs of TRL's DPOTrainer in bf16, in a process of their own; no line here is of the code under test.

    python tests/helpers/trl_runs.py REQUEST.json ANSWER.json

A request names a `model` folder in bf16, a file of `pairs`, `num_steps`, `pairs_per_step`, options of every run, and
`runs`: by name, what sets each apart. The answer has loss and gradient norm of every step of each.
"""

from __future__ import annotations

import json
import os
import random
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any


def in_steps(rows: list[Any], per_step: int, seed: int | None) -> list[Any]:
    """Return rows in another order inside each step; the steps hold the same rows."""
    if seed is None:
        return rows
    draw, found = random.Random(seed), []
    for first in range(0, len(rows), per_step):
        found += draw.sample(rows[first : first + per_step], per_step)
    return found


def deepspeed_config() -> dict[str, Any]:
    """Return what keeps weights of float32 beside those of bf16 that forward and backward see."""
    return {
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 1},
        "gradient_clipping": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def train(request: dict[str, Any], folder: str, run: dict[str, Any]) -> list[dict[str, float]]:
    """Return loss and gradient norm of every step of one run."""
    import torch
    from accelerate.state import AcceleratorState
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    def loaded() -> Any:
        # Without DeepSpeed the weights stay in float32 and each matrix product is of bf16.
        dtype = torch.bfloat16 if run["deepspeed"] else torch.float32
        return AutoModelForCausalLM.from_pretrained(
            request["model"], dtype=dtype, attn_implementation=run["attention"]
        )

    AcceleratorState._reset_state(True)
    rows = [json.loads(line) for line in Path(request["pairs"]).read_text().splitlines()]
    per_step, micro = request["pairs_per_step"], run["micro"]
    config = DPOConfig(
        **request["options"],
        output_dir=folder,
        max_steps=request["num_steps"],
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=per_step // micro,
        max_length=None,
        loss_type=run["loss"],
        beta=run["beta"],
        bf16=not run.get("exact"),
        use_cpu=not torch.cuda.is_available(),
        deepspeed=deepspeed_config() if run["deepspeed"] else None,
    )
    trainer = DPOTrainer(
        loaded(),
        loaded(),
        config,
        train_dataset=Dataset.from_list(in_steps(rows, per_step, run.get("order"))),
        processing_class=AutoTokenizer.from_pretrained(request["model"]),
    )
    trainer.train()
    history = [record for record in trainer.state.log_history if "loss" in record]
    found = [{key: float(record[key]) for key in ("loss", "grad_norm")} for record in history]
    trainer.accelerator.free_memory()
    return found


def main(asked: str, answered: str) -> None:
    """Do the runs that are asked for and write what they report."""
    request = json.loads(Path(asked).read_text())
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    if any(run["deepspeed"] for run in request["runs"].values()):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        os.environ.update(place, RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, run in request["runs"].items():
            found[name] = train(request, folder, run)
    Path(answered).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
