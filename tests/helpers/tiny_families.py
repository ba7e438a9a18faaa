"""Tiny models of the families that people train: the defaults of a configuration class, made small by one rule."""

from __future__ import annotations

from typing import Any

from tests.helpers.families import GROUPS, WINDOW, Family

VOCABULARY = 264
HEADS = 4

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
    own = vars(config)  # a configuration whose layers differ in it refuses to be asked
    heads = own["num_attention_heads"] if "num_attention_heads" in own else getattr(config, "n_head", None)
    for key in KV_HEADS:
        if key in own:
            found[key] = HEADS if own[key] in (None, heads) else GROUPS
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
