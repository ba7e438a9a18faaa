"""Tiny twins of the models that presets name: the same architecture and kinds of layers, of random weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

SMALL = {
    "vocab_size": 264,
    "hidden_size": 64,
    "intermediate_size": 128,
    "moe_intermediate_size": 32,
    "shared_intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "mamba_chunk_size": 32,
    "sliding_window": 24,
    "max_position_embeddings": 512,
    "image_size": 28,
}
"""The largest that a size of a twin is; what is no size stays as it is."""
TOKENS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
ONE_OF_SEEING = 5
"""The token that stands for what is seen."""


def twin_config(shape: Mapping[str, Any]) -> Any:
    """Return the configuration of a twin of a config.json.

    Its layers are the first of each kind, two at least, by every list that has an entry a layer.
    """
    from transformers import AutoConfig

    config: Any = AutoConfig.for_model(**{key: shape[key] for key in shape if key != "quantization_config"})
    parts = [
        config,
        *(part for key in ("text_config", "vision_config") if (part := getattr(config, key, None))),
    ]
    for part in parts:
        _keep_one_of_a_kind(part)
        heads = [getattr(part, key, None) for key in ("num_attention_heads", "num_key_value_heads")]
        for key, most in SMALL.items():
            if isinstance(value := getattr(part, key, None), int):
                setattr(part, key, min(value, most))
        if heads[1] is not None and heads[0] == heads[1]:  # no groups of queries
            part.num_key_value_heads = part.num_attention_heads
        for key in [key for key in vars(part) if key.endswith(("_token_id", "_token_index"))]:
            value = getattr(part, key)
            setattr(
                part,
                key,
                TOKENS[key] if key in TOKENS else ONE_OF_SEEING if isinstance(value, int) else value,
            )
    return config


def layer_kinds(config: Any) -> list[list[Any]]:
    """Return the kinds of layers of a language part, each once, in the order of the first of each."""
    kinds = list(zip(*_lists(config.get_text_config()).values(), strict=True))
    return [list(kind) for kind in dict.fromkeys(kinds)]


def _lists(config: Any) -> dict[str, list[Any]]:
    """Return what has an entry a layer, by name."""
    number = getattr(config, "num_hidden_layers", None)
    return {
        key: value for key, value in vars(config).items() if isinstance(value, list) and len(value) == number
    }


def _keep_one_of_a_kind(config: Any) -> None:
    number = getattr(config, "num_hidden_layers", None)
    if number is None:
        return
    lists = _lists(config)
    kinds = list(zip(*lists.values(), strict=True)) or [()] * number
    kept = sorted({kinds.index(kind) for kind in kinds})
    kept = kept if len(kept) > 1 else [0, 1]
    config.num_hidden_layers = len(kept)
    for key, value in lists.items():
        setattr(config, key, [value[index] for index in kept])


def save_twin(shape: Mapping[str, Any], folder: Path) -> Any:
    """Save a twin with the byte tokenizer; return its configuration."""
    import transformers

    from trainer.model.multimodal import whole_class
    from trainer.model.tiny import build_tokenizer

    config = twin_config(shape)
    build = whole_class(config) or transformers.AutoModelForCausalLM
    make = build._from_config if whole_class(config) is not None else build.from_config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make(config, dtype=torch.float32)
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return config
