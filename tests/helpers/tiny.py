"""A tiny model, ragged documents and a configuration for tests: made on the spot, no network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from trainer.config.data import ColumnsConfig, DataConfig, Format, Packing, SourceConfig
from trainer.config.model import ModelConfig, ModelKind
from trainer.config.optim import OptimConfig, ScheduleConfig, ScheduleName, ZeroConfig
from trainer.config.schema import RunConfig
from trainer.config.snapshot import write_atomic
from trainer.config.store import to_yaml
from trainer.config.train import CheckpointConfig, EvaluateConfig, TrainConfig

SEQ_LEN = 64
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def write_documents(path: Path, num_documents: int, seed: int, ragged: bool) -> None:
    """Write token documents as JSON lines; ragged ones supervise from one token to all of them."""
    rng = np.random.default_rng(seed)
    lines = []
    for index in range(num_documents):
        length = int(rng.integers(6, SEQ_LEN + 1))
        # Half of the ids repeat, so that there is something to learn.
        ids = np.where(rng.random(length) < 0.5, 7, rng.integers(4, 264, length)).tolist()
        row: dict[str, Any] = {"input_ids": ids}
        if ragged:
            supervised = [1, length // 8 + 1, length // 2, length - 1][index % 4]
            row["loss_mask"] = [0] * (length - supervised) + [1] * supervised
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines) + "\n")


def save_llama(folder: Path, seed: int = 0, **changes: Any) -> None:
    """Save a small Llama with random fp32 weights and the byte tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from trainer.model.tiny import build_tokenizer

    config = LlamaConfig(
        vocab_size=264,
        max_position_embeddings=512,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        **(SHAPE | changes),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # A wider start than Llama's 0.02, so that logits and gradients are not all alike.
        config.initializer_range = 0.1
        LlamaForCausalLM(config).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)


def tiny_config(folder: Path) -> RunConfig:
    """Return a configuration of two sources, one ragged, and four packs a step, all under a folder."""
    return RunConfig(
        name="tiny",
        run_dir=str(folder / "run"),
        model=ModelConfig(kind=ModelKind.pretrained, path=str(folder / "model"), loss_chunk_tokens=48),
        data=DataConfig(
            sources={
                "chat": SourceConfig(
                    path=str(folder / "chat.jsonl"),
                    format=Format.ids,
                    columns=ColumnsConfig(loss_mask="loss_mask"),
                    packing=Packing.best_fit,
                ),
                "text": SourceConfig(path=str(folder / "text.jsonl"), format=Format.ids),
            },
            seq_len=SEQ_LEN,
            validation_frac=0.15,
            cache_dir=str(folder / "cache"),
            num_workers=1,
        ),
        train=TrainConfig(global_batch_tokens=4 * SEQ_LEN, max_steps=8),
        optim=OptimConfig(lr=2e-3, clip_norm=1.0),
        schedule=ScheduleConfig(name=ScheduleName.cosine, warmup_steps=2),
        zero=ZeroConfig(stage=1, dtype="fp32", reduce_bucket_size=10_000, persistence_threshold=100),
        evaluate=EvaluateConfig(every_steps=0),
        checkpoint=CheckpointConfig(every_steps=0),
    )


def make_workspace(folder: Path, **changes: Any) -> Path:
    """Write models, documents, stores and config.yaml under a folder; return the configuration's path.

    Args:
        changes: Fields of the models' configurations.
    """
    from trainer.command.prepare import ensure_inputs

    save_llama(folder / "model", **changes)
    save_llama(folder / "tied", tie_word_embeddings=True, **changes)
    save_llama(folder / "dropout", attention_dropout=0.2, **changes)
    write_documents(folder / "chat.jsonl", 90, seed=1, ragged=True)
    write_documents(folder / "text.jsonl", 40, seed=2, ragged=False)
    config = tiny_config(folder)
    ensure_inputs(config)
    path = folder / "config.yaml"
    write_atomic(path, to_yaml(config))
    return path
