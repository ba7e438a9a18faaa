"""A model as plain transformers runs it, in one process, on the GPU where there is one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from trainer.config.model import ModelConfig, ModelHead
from trainer.model.attention import AttentionChoice, offered
from trainer.model.dtype import choose_dtype, hardware_here
from trainer.model.load import load_model, read_config
from trainer.model.resolve import resolve_model


def device_here() -> torch.device:
    """Return the GPU, or the CPU where there is none."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def load_plain(model: ModelConfig, cache_dir: Path) -> Any:
    """Return a language model, ready to be asked: in bf16 where the GPU has it, on a CPU in float32.

    Raises:
        TrainerError: It cannot be loaded.
    """
    asked = dataclasses.replace(model, head=ModelHead.language)
    source, device = resolve_model(asked, cache_dir), device_here()
    dtype = choose_dtype(hardware_here()).name if device.type == "cuda" else "fp32"
    has = offered(read_config(source, asked))
    attention = AttentionChoice("sdpa" if has.has_sdpa else "eager", "a document a row")
    return load_model(source, asked, attention, dtype, None, device).model.eval()
