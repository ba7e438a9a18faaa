"""The families that people train, by the names they know, and the model types of transformers that are none of them.

A family is the class of a configuration, and what the rule that makes it small (tests/helpers/tiny_families.py) cannot
know: sizes that hang together, and variants that the defaults do not show.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

WINDOW = 48
"""Shorter than most documents."""
GROUPS = 2


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
BY_KIND = {
    "layer_types": ["sliding_attention", "full_attention"],
    "rope_parameters": {
        kind: {"rope_type": "default", "rope_theta": 1e4} for kind in ("sliding_attention", "full_attention")
    },
    "logit_scale": 0.25,
}
DBRX = {
    "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
    "ffn_config": {"ffn_hidden_size": 32, "moe_top_k": 2},
}
INKLING = {
    "unpadded_vocab_size": 264,
    "sliding_window_size": WINDOW,
    "rel_extent": 64,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 16,
}
QWEN4 = {
    "layer_types": ["linear_attention", "full_attention"],
    "num_hidden_layers": 2,
    "indexer_n_heads": 24,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 32,
    "indexer_compress_ratio": 4,
    "hc_lowrank": 8,
    "ple_layer_ids": [1],
    "ple_embed_dim": 64,
    "heads_per_ngram": 2,
    "ngram_vocab_size_base": 101,
    "make_ngram_vocab_size_divisible_by": 2,
    "split_ngram_parts": 2,
}
ZAMBA = {
    "num_hidden_layers": 3,
    "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
    "attention_hidden_size": 128,
    "attention_head_dim": 32,
    "n_mamba_heads": 2,
    "num_key_value_heads": 4,
}
PART = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 4}
BLT = {
    "cross_attn_k": 1,
    "encoder_hash_byte_group_vocab": 128,
    "encoder_hash_byte_group_size": [2, 3],
    "encoder_config": PART | {"cross_attn_k": 1, "hidden_size_global": 64},
    "decoder_config": PART | {"cross_attn_k": 1, "hidden_size_global": 64},
    "global_config": PART,
    "patcher_config": PART,
}
DOTS = {
    "layer_types": ["indexed_attention", "sliding_attention"],
    "mlp_layer_types": ["dense", "sparse"],
    "num_hidden_layers": 2,
    "per_layer_config": {},
    "shared_experts_intermediate_size": 32,
    "head_dim": 24,
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
    # Dense, of 2024 to 2026, that few train.
    "GLM-4 9B": Family("glm"),
    "EXAONE 3": Family("exaone"),
    "InternLM3": Family("internlm3"),
    "IQuest-Coder": Family("iquestcoder"),
    "Jais 2": Family("jais2"),
    "NanoChat": Family("nanochat"),
    "Youtu-LLM": Family("youtu", {"pad_token_id": None}),
    "DiffLlama": Family("diffllama"),
    "Doge": Family("doge"),
    "BitNet b1.58": Family("bitnet"),
    "HyperCLOVA X SEED": Family("hyperclovax", {"logits_scaling": 8.0, "attention_multiplier": 0.25}),
    "HRM-Text": Family("hrm_text"),
    "CWM": Family("cwm", {"bos_token_id": 2} | SLIDES),
    "Dory": Family("dory"),
    "Flint": Family("flint"),
    "Granite SWA": Family("granite_swa", {"logits_scaling": 8.0, "attention_multiplier": 0.25}),
    "Kolibri 1": Family("kolibri1"),
    "ModernBERT decoder": Family("modernbert-decoder", {"bos_token_id": 2, "local_attention": WINDOW}),
    "Apertus 1.5, language model": Family("apertus1p5_text"),
    "Cohere Compass, language model": Family("cohere_compass_text", BY_KIND),
    "Gemma 4 unified, language model": Family("gemma4_unified_text", {"global_head_dim": 32}),
    "Phi-4-multimodal": Family("phi4_multimodal"),
    # Mixtures of experts of the same years.
    "A.X K1": Family("axk1"),
    "A.X K2": Family("axk2"),
    "Aria, language model": Family("aria_text"),
    "Beam 1": Family("beam"),
    "Command A+": Family("cohere2_moe"),
    "DBRX": Family("dbrx", DBRX),
    "DeepSeek-V4": Family("deepseek_v4", {"o_lora_rank": 16}),
    "dots3-note, language model": Family("dots3_note_text", DOTS),
    "Granite MoE SWA": Family("granitemoe_swa", {"logits_scaling": 6.0}),
    "Hunyuan 3": Family("hy_v3"),
    "Hunyuan 4": Family("hy_v4"),
    "Inkling, language model": Family("inkling_text", {"rel_extent": 64}),
    "Inkling 2, language model": Family("inkling2_text", INKLING),
    "Inkling 2 loop, language model": Family("inkling2_loop_text", INKLING),
    "JetMoE": Family("jetmoe"),
    "Laguna": Family("laguna", SLIDES),
    "LongCat-Flash": Family("longcat_flash", {"zero_expert_num": 2, "num_layers": 1}),
    "Mellum 2": Family("mellum", SLIDES),
    "MiniMax-M3, language model": Family("minimax_m3_vl_text"),
    "Sarvam 30B": Family("sarvam_moe"),
    "Sarvam 105B": Family("sarvam_mla"),
    "ZAYA1": Family("zaya", {"num_experts_per_tok": 1}),
    # Hybrids and recurrent models of the same years.
    "BLT": Family("blt", BLT),
    "LFM3": Family("lfm3"),
    "Lara 4 Mini": Family("lara_mini"),
    "Ling 3": Family("bailing_hybrid"),
    "MiniMax-Text-01 and M1": Family("minimax"),
    "Qwen3.5-MoE, language model": Family("qwen3_5_moe_text"),
    "Qwen4-Exp, language model": Family("qwen4_exp_text", QWEN4),
    "RecurrentGemma": Family("recurrent_gemma", {"num_hidden_layers": 3}),
    "xLSTM": Family("xlstm"),
    "Zamba": Family("zamba", ZAMBA),
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
