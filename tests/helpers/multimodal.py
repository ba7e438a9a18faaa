"""Tiny models that also see, as transformers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

TEXT: dict[str, Any] = {
    "vocab_size": 264,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
TOKENS = {
    "image_token_id": 5,
    "image_token_index": 5,
    "video_token_id": 6,
    "boi_token_index": 7,
    "eoi_token_index": 8,
}
DELTA = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "full_attention"],
}
QWEN_VISION = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_heads": 2,
    "patch_size": 4,
    "out_hidden_size": 32,
    "num_position_embeddings": 16,
}
KINDS: dict[str, dict[str, Any]] = {
    "gemma3": {
        "text_config": {**TEXT, "model_type": "gemma3_text", "query_pre_attn_scalar": 8},
        "vision_config": {**VISION, "model_type": "siglip_vision_model"},
        "tie_word_embeddings": True,
    },
    "mistral3": {
        "text_config": {
            **TEXT,
            "model_type": "mistral",
            "sliding_window": None,
            "tie_word_embeddings": False,
        },
        "vision_config": {**VISION, "model_type": "pixtral", "head_dim": 16},
        "tie_word_embeddings": False,
    },
    "qwen3_5": {
        "text_config": {**TEXT, **DELTA, "model_type": "qwen3_5_text", "tie_word_embeddings": False},
        "vision_config": QWEN_VISION,
        "tie_word_embeddings": False,
    },
}


def save_multimodal(folder: Path, kind: str, **text: Any) -> Any:
    """Save a tiny model of a kind with a tokenizer and return it; its weights are far from those of the beginning.

    Args:
        text: Other sizes of its language part.
    """
    from transformers import AutoModelForImageTextToText
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from trainer.model.tiny import build_tokenizer

    torch.manual_seed(0)
    options = {**KINDS[kind], "text_config": {**KINDS[kind]["text_config"], **text}}
    model = AutoModelForImageTextToText.from_config(
        CONFIG_MAPPING[kind](**options, **TOKENS), dtype=torch.float32
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return model.eval()
