"""The parts of a Hugging Face folder that are not weights, and reading such a folder back."""

from __future__ import annotations

from pathlib import Path

import torch

from trainer.config.model import ModelConfig
from trainer.errors import SelfCheckError
from trainer.model.load import read_config
from trainer.model.resolve import tokenizer_source
from trainer.model.tokenizer import load_tokenizer


def write_model_files(source: str, model: ModelConfig, dtype: str, folder: Path) -> None:
    """Write config, generation config, tokenizer and chat template beside exported weights."""
    from transformers import GenerationConfig

    config = read_config(source, model)
    config.dtype = dtype
    config.use_cache = True
    config.save_pretrained(folder)
    try:
        generation = GenerationConfig.from_pretrained(source, revision=model.revision)
    except OSError:
        generation = GenerationConfig.from_model_config(config)
    generation.save_pretrained(folder)
    tokenizer = load_tokenizer(
        tokenizer_source(model, source),
        model.revision,
        model.chat_template,
        model.trust_remote_code,
    )
    tokenizer.save(folder)


def folder_logits(folder: Path, tokens_T: torch.Tensor, dtype: str, trust_remote_code: bool) -> torch.Tensor:
    """Load a folder as any user would and return logits [T, V] float32 of one document."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, info = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, dtype),
        trust_remote_code=trust_remote_code,
        output_loading_info=True,
    )
    broken = [k for k in ("missing_keys", "unexpected_keys", "mismatched_keys") if info.get(k)]
    if broken:
        raise SelfCheckError(
            f"The exported folder {folder} must load completely, but has {broken[0].replace('_', ' ')}: "
            f"{sorted(info[broken[0]])[:4]}."
        )
    model = model.to(device).eval()
    with torch.no_grad():
        logits = model(input_ids=tokens_T[None].to(device), use_cache=False).logits
    return torch.as_tensor(logits[0]).float().cpu()
