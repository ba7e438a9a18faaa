"""Tiny models of the families that people train: the defaults of a configuration class, made small by one rule.

A family is a name that people know, the class of its configuration, and what the rule cannot know: sizes that hang
together, and variants that the defaults do not show.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

VOCABULARY = 264
WINDOW = 48
"""Shorter than most documents."""
HEADS, GROUPS = 4, 2

SMALL: dict[str, Any] = {
    **dict.fromkeys(
        ("hidden_size", "d_model", "n_embd", "lru_width", "embedding_dim", "word_embed_proj_dim"), 64
    ),
    **dict.fromkeys(
        ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "intermediate_size_mlp"), 128
    ),
    **dict.fromkeys(("moe_intermediate_size", "shared_intermediate_size", "expert_ffn_hidden_size"), 32),
    **dict.fromkeys(("shared_expert_intermediate_size", "moe_shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), HEADS),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk"), 2),
    **dict.fromkeys(("num_shared_experts", "n_shared_experts", "moe_num_shared_experts"), 1),
    **dict.fromkeys(("n_group", "num_expert_group"), 2),
    **dict.fromkeys(("topk_group", "first_k_dense_replace", "num_dense_layers", "moe_layer_start_index"), 1),
    **dict.fromkeys(
        ("sliding_window", "attention_chunk_size", "attention_window_size", "window_size"), WINDOW
    ),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "model_max_length"), 512),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    **dict.fromkeys(
        ("head_dim", "v_head_dim", "qk_nope_head_dim", "kv_channels", "query_pre_attn_scalar"), 16
    ),
    **dict.fromkeys(("qk_rope_head_dim", "rotary_dim", "index_rotary_dim"), 8),
    **{"kv_lora_rank": 16, "q_lora_rank": 24, "laurel_rank": 4, "hidden_size_per_layer_input": 8},
    # Few heads of an indexer tie at a score of 0, and which of a tie is chosen depends on the layout.
    **{"index_n_heads": 24, "index_head_dim": 16, "index_topk": 32},
    # What carries along a row.
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "n_mamba_heads"), 8),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "mamba_headdim", "linear_head_dim"), 16),
    **dict.fromkeys(("mamba_d_state", "ssm_state_size", "state_size"), 16),
    **dict.fromkeys(("mamba_n_groups", "n_groups", "mamba_ngroups"), 1),
    **dict.fromkeys(("mamba_chunk_size", "chunk_size"), 32),
    **dict.fromkeys(("mamba_dt_rank", "time_step_rank"), 4),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 16),
    **{"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_num_heads": 4, "mamba_d_ssm": 128},
    # What sees.
    **{"image_size": 28, "patch_size": 14, "depth": 1, "out_hidden_size": 64, "num_position_embeddings": 16},
    **{
        "vision_output_dim": 32,
        "projector_input_dim": 32,
        "projector_output_dim": 32,
        "position_embedding_size": 64,
    },
    **{"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1},
}
"""The small value of a key, wherever a configuration has it; None stays None."""
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks")
KV_HEADS = ("num_key_value_heads", "num_kv_heads", "num_query_groups")
RANDOM = ("dropout", "pdrop", "jitter")
"""Parts of the names of what is drawn anew in every forward pass: 0."""
SEES = {"hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "num_attention_heads": 2}


@dataclass(frozen=True)
class Family:
    """How a tiny model of a family is made."""

    model_type: str
    options: dict[str, Any] = field(default_factory=dict)
    """Beside what the rule makes; those of parts as `text_config` and `vision_config`."""


TIED = {"tie_word_embeddings": True}
SLIDES = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
WIDE = {"head_dim": 16}
SHARED_KV = {
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_hidden_layers": 4,
    "num_kv_shared_layers": 2,
}
THREE = {
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "num_hidden_layers": 3,
    "num_kv_shared_layers": 1,
}
CHUNKS = {
    "num_hidden_layers": 4,
    "layer_types": ["chunked_attention", "full_attention"] * 2,
    "moe_layers": [1, 3],
    "no_rope_layers": [1, 0, 1, 0],
    "num_experts_per_tok": 1,
}
ROPE_3D = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 2, 2]}}
FAMILIES: dict[str, Family] = {
    # Dense.
    "Llama 3": Family("llama"),
    "Llama 3.2": Family("llama", TIED),
    "Qwen2.5": Family("qwen2", TIED),
    "Qwen3": Family("qwen3"),
    "Mistral Nemo": Family("mistral", {"sliding_window": None}),
    "Ministral 3, language model": Family("ministral3"),
    "Gemma": Family("gemma"),
    "Phi-1.5 and 2": Family("phi"),
    "Phi-4": Family("phi3"),
    "OLMo": Family("olmo"),
    "OLMo 2": Family("olmo2"),
    "SmolLM3": Family("smollm3", {"no_rope_layers": [1, 0]}),
    "GLM-4 0414": Family("glm4"),
    "ERNIE 4.5": Family("ernie4_5"),
    "Hunyuan": Family("hunyuan_v1_dense", WIDE),
    "Seed-OSS": Family("seed_oss"),
    "Arcee": Family("arcee"),
    "Apertus": Family("apertus"),
    "Helium": Family("helium"),
    "MiniCPM3": Family("minicpm3"),
    "Nemotron-4": Family("nemotron"),
    "StableLM": Family("stablelm"),
    "Falcon": Family("falcon", {"new_decoder_architecture": True, "num_kv_heads": GROUPS}),
    "GPT-2": Family("gpt2"),
    "GPT-J": Family("gptj"),
    "GPT-NeoX and Pythia": Family("gpt_neox"),
    "BLOOM": Family("bloom"),
    "OPT": Family("opt"),
    # Windows on all layers or some.
    "Mistral 7B v0.1": Family("mistral"),
    "Ministral 8B": Family("ministral", SLIDES | WIDE),
    "Phi-3 mini": Family("phi3", {"sliding_window": WINDOW}),
    "StarCoder2": Family("starcoder2", {"sliding_window": WINDOW, "use_bias": True}),
    "OLMo 3": Family("olmo3"),
    "EXAONE 4": Family("exaone4"),
    # Logits or attention scaled or capped.
    "Granite 3": Family(
        "granite", {"logits_scaling": 8.0, "embedding_multiplier": 12.0, "attention_multiplier": 0.25, **TIED}
    ),
    "Command R": Family("cohere"),
    "Command R7B and A": Family("cohere2"),
    "Gemma 2": Family("gemma2"),
    "Gemma 3 1B": Family("gemma3_text"),
    "Gemma 3n, language model": Family(
        "gemma3n_text", SHARED_KV | {"activation_sparsity_pattern": [0.0] * 4, "intermediate_size": [128] * 4}
    ),
    "Gemma 4, language model": Family("gemma4_text", THREE | {"global_head_dim": 32}),
    "VaultGemma": Family("vaultgemma"),
    # Mixtures of experts.
    "Mixtral": Family("mixtral"),
    "Qwen1.5-MoE and Qwen2-MoE": Family("qwen2_moe"),
    "Qwen3-MoE": Family("qwen3_moe"),
    "OLMoE": Family("olmoe"),
    "FlexOlmo": Family("flex_olmo"),
    "DeepSeek-V2": Family("deepseek_v2", {"num_experts_per_tok": 2}),
    "DeepSeek-V3 and R1": Family("deepseek_v3"),
    "DeepSeek-V3.2": Family("deepseek_v32"),
    "GLM-4.5": Family("glm4_moe"),
    "GLM-4.7 Flash": Family("glm4_moe_lite"),
    "GLM-5": Family("glm_moe_dsa"),
    "gpt-oss": Family("gpt_oss"),
    "Granite MoE": Family("granitemoe", {"logits_scaling": 6.0}),
    "Granite MoE, shared experts": Family("granitemoeshared", {"shared_intermediate_size": 32}),
    "Phi-3.5-MoE": Family("phimoe"),
    "ERNIE 4.5 MoE": Family("ernie4_5_moe"),
    "Hunyuan-A13B": Family("hunyuan_v1_moe", WIDE),
    "Llama 4, language model": Family("llama4_text", CHUNKS),
    "MiniMax-M2": Family("minimax_m2"),
    "MiMo-V2-Flash": Family("mimo_v2_flash"),
    "dots.llm1": Family(
        "dots1",
        {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1}
        | SLIDES,
    ),
    "EXAONE MoE": Family("exaone_moe"),
    "Solar Open": Family("solar_open"),
    "AFMoE (Trinity)": Family("afmoe"),
    # Hybrids and recurrent models.
    "Qwen3-Next": Family("qwen3_next"),
    "Qwen3.5, language model": Family("qwen3_5_text"),
    "Kimi Linear": Family("kimi_linear"),
    "OLMo Hybrid": Family("olmo_hybrid"),
    "Granite 4": Family(
        "granitemoehybrid",
        {"layer_types": ["mamba", "attention"], "logits_scaling": 8.0, "position_embedding_type": "nope"},
    ),
    "Nemotron-H": Family("nemotron_h"),
    "LFM2": Family("lfm2", {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]}),
    "LFM2-MoE": Family(
        "lfm2_moe", {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"], "num_dense_layers": 1}
    ),
    "Falcon-H1": Family("falcon_h1"),
    "Falcon Mamba": Family("falcon_mamba"),
    "Mamba": Family("mamba"),
    "Mamba-2": Family("mamba2", {"num_heads": 8, "head_dim": 16}),
    "Bamba": Family("bamba", {"attn_layer_indices": [1]}),
    "Jamba": Family(
        "jamba",
        {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    ),
    "Zamba2": Family("zamba2"),
    # Models that also see: their language part trains.
    # Four layers: of 20 names of layers or more peft keeps the last words, which the tower that sees has too.
    "Gemma 3": Family(
        "gemma3", {"text_config": {"num_hidden_layers": 4, "layer_types": SLIDES["layer_types"] * 2}}
    ),
    "Gemma 4": Family("gemma4", {"audio_config": None, "text_config": {"global_head_dim": 32}}),
    "Mistral Small 3.1": Family("mistral3", {"text_config": {"sliding_window": None}}),
    "Ministral 3": Family("mistral3", {"text_config": {"model_type": "ministral3"}}),
    "Llama 4": Family("llama4", {"text_config": CHUNKS}),
    "Qwen2.5-VL": Family("qwen2_5_vl", {"text_config": ROPE_3D}),
    "Qwen3-VL": Family("qwen3_vl", {"text_config": ROPE_3D}),
    "Qwen3.5": Family("qwen3_5"),
    "Qwen3.5-MoE": Family("qwen3_5_moe"),
    "InternVL": Family("internvl"),
    "LLaVA": Family("llava"),
    "SmolVLM": Family("smolvlm"),
}


def tiny_config(family: Family) -> Any:
    """Return the configuration of a tiny model of a family."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = CONFIG_MAPPING[family.model_type]
    return kind(**small_options(kind(), family.options))


def small_options(config: Any, options: dict[str, Any], small: dict[str, Any] = SMALL) -> dict[str, Any]:
    """Return what makes a configuration small: its own keys with small values, a layer of every kind."""
    from transformers import PreTrainedConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    found: dict[str, Any] = {}
    for key, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            own = options.get(key) or {}
            part = CONFIG_MAPPING[own["model_type"]]() if "model_type" in own else value
            sees = small if key == "text_config" else SMALL | SEES
            found[key] = {"model_type": part.model_type} | small_options(part, own, sees)
        elif key in small and (value is not None or key.endswith("token_id")):
            found[key] = small[key]
        elif any(part in key for part in RANDOM) and isinstance(value, float):
            found[key] = 0.0
        elif key.endswith(("token_id", "token_index")) and isinstance(value, int) and value >= VOCABULARY:
            found[key] = 5 + len(found) % 10
    heads = getattr(config, "num_attention_heads", None)
    for key in KV_HEADS:
        if key in vars(config):
            found[key] = HEADS if getattr(config, key) in (None, heads) else GROUPS
    if "qk_rope_head_dim" in vars(config):
        found["head_dim"] = small["qk_rope_head_dim"]
    found |= _layers(config)
    return found | {k: v for k, v in options.items() if not (isinstance(v, dict) and k in found)}


def _layers(config: Any) -> dict[str, Any]:
    """Return a layer of every combination of kinds that the defaults have, two at least."""
    key = next((key for key in LAYERS if isinstance(getattr(config, key, None), int)), None)
    if key is None:
        return {}
    number = getattr(config, key)
    lists = {
        name: value
        for name, value in vars(config).items()
        if isinstance(value, list) and len(value) == number > 1 and not _are_places(value)
    }
    first: dict[str, int] = {}
    for place, kinds in enumerate(zip(*lists.values(), strict=True)):
        first.setdefault(str(kinds), place)
    places = list(first.values()) or [0]
    places *= 2 if len(places) == 1 else 1
    return {key: len(places)} | {name: [values[place] for place in places] for name, values in lists.items()}


def _are_places(values: list[Any]) -> bool:
    """Tell whether a list names places of layers, not the kind of each."""
    return all(isinstance(value, int) for value in values) and sorted(set(values)) == values
