"""Run directories as a finished run leaves them, with made-up numbers of a realistic size."""

import json
import math

import numpy as np

from trainer.evaluate.compare import compare_set
from trainer.metrics.jsonl import JsonlSink, Ledger

CONFIG = """\
name: german-manuals
run_dir: runs/german-manuals
seed: 0
kind: continued_pretrain
data: {seq_len: 1024}
train: {global_batch_tokens: 65536, micro_batch_size: 4}
optim: {lr: 0.0002}
schedule: {name: wsd}
zero: {stage: 2, dtype: bf16}
"""
TOKENS_PER_STEP = 65_536


def compared(name, role, base_nats, change, spread, num_documents=60, has_bytes=True):
    """A held-out set whose documents scatter around a base loss and a change."""
    rng = np.random.default_rng(len(name))
    targets = rng.integers(60, 900, num_documents)
    base = targets * base_nats * rng.gamma(30.0, 1 / 30.0, num_documents)
    tuned = base + targets * (change + spread * rng.standard_normal(num_documents))
    return compare_set(name, role, base, tuned, targets, 4 * targets if has_bytes else None, 1000).to_plain()


def forgetting(sources=("manuals_de", "general")):
    """A whole forgetting.json."""
    return {
        "version": 1,
        "run": {
            "name": "german-manuals",
            "base": "HuggingFaceTB/SmolLM2-135M-Instruct",
            "base_digest": "7c8d3649a1f04be1",
            "tuned": "step-00000160",
            "steps": 160,
            "tokens_seen": 160 * TOKENS_PER_STEP,
            "device": "NVIDIA H200",
            "dtype": "bf16",
        },
        "sets": [
            compared(sources[0], "target", 3.42, -1.214, 0.2),
            compared(sources[1], "replay", 2.71, 0.021, 0.03),
            compared("wikitext", "probe", 3.05, 0.094, 0.12),
            compared("gsm8k_solutions", "probe", 1.32, 0.004, 0.09),
            compared("chat_answers", "probe", 0.61, 0.153, 0.0, num_documents=1, has_bytes=False),
        ],
        "kl": [
            {
                "prompts": "new task",
                "nats": 0.412,
                "low": 0.38,
                "high": 0.447,
                "num_tokens": 6144,
                "num_documents": 48,
            },
            {
                "prompts": "fixed_conversations",
                "nats": 0.087,
                "low": None,
                "high": None,
                "num_tokens": 512,
                "num_documents": 1,
            },
        ],
        "recovery": {
            "set": "wikitext",
            "steps": 20,
            "base_nats": 3.05,
            "tuned_nats": 3.144,
            "recovered_nats": 3.071,
        },
        "replay": {
            "ratio_asked": 0.1,
            "ratio_reached": 0.0998,
            "schedule": "constant",
            "controller": "none",
            "sources": [
                {
                    "name": sources[0],
                    "role": "target",
                    "targets": 9_439_120,
                    "tokens": 9_441_280,
                    "epochs": 1.31,
                    "max_epochs": None,
                },
                {
                    "name": sources[1],
                    "role": "replay",
                    "targets": 1_046_800,
                    "tokens": 1_048_576,
                    "epochs": 0.42,
                    "max_epochs": 4.0,
                },
            ],
        },
    }


def write_metrics(path, sources=("manuals_de", "general"), num_steps=160):
    """Training rows every 2 steps, held-out losses every 20, with the keys the trainer writes."""
    rng = np.random.default_rng(0)
    sink = JsonlSink(path)
    for step in range(0, num_steps + 1):
        part = step / num_steps
        if step and step % 2 == 0:
            losses = [2.2 + 1.3 * math.exp(-4 * part), 2.7 + 0.05 * math.sin(9 * part)]
            losses = [loss + 0.06 * rng.standard_normal() for loss in losses]
            row = {"loss": 0.9 * losses[0] + 0.1 * losses[1]}
            row |= {f"loss/{name}": loss for name, loss in zip(sources, losses, strict=True)}
            row |= {
                "lr": 2e-4 * min(1.0, step / 10, max(0.05, (1 - part) / 0.2)),
                "grad_norm": 1.2 + 2 * math.exp(-6 * part) + 0.2 * rng.random(),
                "tokens_per_s": 182_000 + 4000 * rng.standard_normal(),
                "tokens_per_s_per_gpu": 91_000.0,
                "step_time_s": 0.36,
                "mfu": 0.41 + 0.01 * rng.standard_normal(),
                "memory_gib": 61.4,
                "tokens_seen": step * TOKENS_PER_STEP,
                "replay_ratio": 0.1 if step > 20 else 0.1 * step / 20,
                "replay_share": 0.1 * (1 - 10 / step) if step > 20 else 0.05 * step / 20,
            }
            sink.write(step, row)
        if step % 20 == 0:
            held_out = [2.21 + 1.21 * math.exp(-4 * part), 2.71 + 0.06 * part * math.exp(-3 * part)]
            row = {f"eval/{name}": loss for name, loss in zip(sources, held_out, strict=True)}
            sink.write(step, {**row, "eval_mean": sum(held_out) / 2, "eval_time_s": 4.2})
    sink.close("finished")


def write_run(run_dir, sources=("manuals_de", "general")):
    """Write every file the report reads; return the directory."""
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "forgetting.json").write_text(json.dumps(forgetting(sources)), encoding="utf-8")
    write_metrics(run_dir / "metrics.jsonl", sources)
    ledger = Ledger(run_dir / "ledger.jsonl")
    ledger.write("started", 0, attempt=1, world_size=2, num_steps=160)
    ledger.write("saved", 80, seconds=1.2, data_digest="5f7c2b8edbb01c2a")
    ledger.write("started", 80, attempt=2, world_size=2, num_steps=160)
    ledger.write("skipped", 93, loss="nan", grad_norm="nan")
    ledger.write("stopped", 160, reason="finished", data_digest="8551dee6ddf6935d")
    ledger.close()
    (run_dir / "config.yaml").write_text(CONFIG, encoding="utf-8")
    provenance = {
        "palimpsest": "0.1.0",
        "git": "7dbfdf2e96af9893246c5c17a943014d48573ad4",
        "python": "3.11.7",
        "packages": {"torch": "2.11.0", "deepspeed": "0.19.8", "flash-attn": None},
        "device": "NVIDIA H200, 139 GiB",
        "host": "node17",
        "data": {name: "68b0613d582aa00282171a49800fadba" for name in sources},
    }
    (run_dir / "provenance.json").write_text(json.dumps(provenance), encoding="utf-8")
    return run_dir
