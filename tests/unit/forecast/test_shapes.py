"""Counts from config.json against the models that transformers builds of the same file."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.house.tree import ROOT
from trainer.command.counted import find_shape
from trainer.config.model import ModelConfig
from trainer.config.options import group_options
from trainer.config.store import compose_config
from trainer.errors import ModelError
from trainer.forecast.config_json import shipped_shapes
from trainer.forecast.shapes import decoder_shape, knows
from trainer.model.meta import meta_shape

BASE = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 100,
}
EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
CASES = [
    {"model_type": "llama"},
    {"model_type": "llama", "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    {"model_type": "llama", "head_dim": 16},
    {"model_type": "llama", "num_key_value_heads": None},
    {"model_type": "mistral", "head_dim": 12},
    {"model_type": "qwen2", "tie_word_embeddings": True},
    {"model_type": "qwen3", "head_dim": 16},
    {"model_type": "qwen3", "head_dim": 8, "attention_bias": True, "tie_word_embeddings": True},
    {"model_type": "gemma", "head_dim": 16},
    {"model_type": "gemma2", "head_dim": 16},
    {"model_type": "gemma3_text", "head_dim": 16, "tie_word_embeddings": False},
    {"model_type": "olmo2"},
    {"model_type": "olmo3", "attention_bias": True, "tie_word_embeddings": True},
    {"model_type": "phi3", "pad_token_id": 0},
    {"model_type": "smollm3", "pad_token_id": 0, "mlp_bias": True, "attention_bias": True},
    {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    {"model_type": "qwen2_moe", **EXPERTS, "shared_expert_intermediate_size": 40},
    {"model_type": "qwen2_moe", **EXPERTS, "shared_expert_intermediate_size": 40, "qkv_bias": False},
    {"model_type": "qwen3_moe", **EXPERTS, "head_dim": 16},
    {"model_type": "qwen3_moe", **EXPERTS, "head_dim": 16, "decoder_sparse_step": 2},
    {"model_type": "qwen3_moe", **EXPERTS, "head_dim": 16, "mlp_only_layers": [0]},
]
REAL = {
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "meta-llama/Llama-3.1-70B": 70_553_706_496,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": 1_711_376_384,
    "HuggingFaceTB/SmolLM3-3B": 3_075_098_624,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "allenai/OLMo-2-1124-7B-Instruct": 7_298_617_344,
    "allenai/Olmo-3-1025-7B": 7_298_011_136,
    "google/gemma-3-1b-it": 999_885_952,
    "meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400,
    "microsoft/phi-4": 14_659_507_200,
    "mistralai/Mistral-7B-Instruct-v0.3": 7_248_023_552,
    "Qwen/Qwen3-30B-A3B": 30_532_122_624,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "meta-llama/Llama-3.3-70B-Instruct": 70_553_706_496,
    # Without the 0.44 billion of what sees.
    "mistralai/Mistral-Small-3.1-24B-Instruct-2503": 23_572_403_200,
    "google/gemma-3-4b-it": 3_880_263_168,
    # Experts whole; without the layer of GLM that predicts a second token.
    "openai/gpt-oss-20b": 20_914_757_184,
    "ibm-granite/granite-4.0-h-tiny": 6_939_037_248,
    "zai-org/GLM-4.5-Air": 106_852_245_504,
}
ACTIVE = {
    # The 3.6 and 12 billion that publishers tell of, and embeddings: 579,133,440 and twice 620,756,992.
    "openai/gpt-oss-20b": 4_193_246_784,
    "zai-org/GLM-4.5-Air": 13_424_123_904,
    "ibm-granite/granite-4.0-h-tiny": 1_465_470_528,
    "Qwen/Qwen3-30B-A3B": 3_353_032_704,
}


def built(config):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))


def num_built(model):
    return sum(parameter.numel() for parameter in model.parameters())


def name_of(config):
    own = {key: value for key, value in config.items() if key not in EXPERTS}
    return "-".join(str(value) for value in own.values())


def linears_of(model):
    """Return (last name, in, out) -> how often, without the head."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not model.get_output_embeddings():
            key = (name.rsplit(".", 1)[-1], module.in_features, module.out_features)
            found[key] = found.get(key, 0) + 1
    return found


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_counts_are_those_of_the_model_transformers_builds(case):
    config = BASE | case
    shape, model = decoder_shape(config, "here"), built(config)
    assert shape.num_params == num_built(model)
    assert shape.is_tied == bool(model.config.tie_word_embeddings)
    norms = [m for m in model.modules() if "Norm" in type(m).__name__]
    assert shape.norms == sum(p.numel() for norm in norms for p in norm.parameters())
    attention = [m for name, m in model.named_modules() if name.endswith("self_attn")]
    inside = [p for one in attention for name, p in one.named_parameters() if "norm" not in name]
    assert shape.attention == sum(p.numel() for p in inside)
    assert shape.experts == sum(p.numel() for p in model.parameters() if p.ndim == 3)
    ours = {}
    for linear in shape.linears:
        key = (linear.name.rsplit(".", 1)[-1], linear.num_in, linear.num_out)
        ours[key] = ours.get(key, 0) + linear.count
    assert ours == linears_of(model)


@pytest.mark.parametrize("model_type", sorted({case["model_type"] for case in CASES}))
def test_what_config_json_leaves_out_is_what_transformers_assumes(model_type):
    config = {"model_type": model_type, "hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 32}
    config |= {"intermediate_size": 64, "vocab_size": 50}
    if model_type in ("mixtral", "qwen2_moe", "qwen3_moe"):
        config |= EXPERTS | {"num_local_experts": 5, "shared_expert_intermediate_size": 16}
    if model_type in ("phi3", "smollm3"):
        config |= {"pad_token_id": 0}  # the one they assume is not among 50 tokens
    assert decoder_shape(config, "here").num_params == num_built(built(config))


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_a_folder_that_transformers_wrote_says_the_same(case, tmp_path):
    """It writes the experts of Qwen3-MoE under another name than Qwen does, and the sizes of some under two."""
    AutoConfig.for_model(**(BASE | case)).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert decoder_shape(written, "there") == decoder_shape(BASE | case, "here")


def test_a_token_of_a_mixture_goes_to_the_experts_it_is_sent_to_and_memory_holds_all():
    config = BASE | {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 1}
    shape = decoder_shape(config, "here")
    assert shape.idle == shape.experts * 3 // 4 and shape.num_active == shape.num_params - shape.idle
    assert decoder_shape(BASE | {"model_type": "llama"}, "here").idle == 0


@pytest.mark.parametrize("name", REAL)
def test_real_shapes_have_the_parameters_their_publishers_say(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    shape, _ = find_shape(ModelConfig(path=name))
    assert shape.num_params == REAL[name]
    assert shape.num_active == ACTIVE.get(name, REAL[name])


def test_a_part_that_says_all_sizes_is_counted_without_building_it():
    found = shipped_shapes()
    assert knows(found["mistralai/Mistral-Small-3.1-24B-Instruct-2503"])
    # Gemma 3 leaves its vocabulary and heads to transformers.
    assert not knows(found["google/gemma-3-4b-it"])


def test_what_is_built_tells_of_its_attention_its_layers_and_its_files():
    shape, _ = find_shape(ModelConfig(path="openai/gpt-oss-20b"))
    assert not shape.has_sdpa and not shape.has_flash
    # 4 of 32 experts of 2880 a token, and the router; 4 copies in and 4 out.
    assert shape.ffn_width == pytest.approx(4 * 2880 + 32 / 3, rel=0.01) and shape.routed_copies == 8
    assert any(
        "weights in mxfp4, which are made whole as they are read: 39.0 GiB" in note for note in shape.notes
    )
    gemma, _ = find_shape(ModelConfig(path="google/gemma-3-4b-it"))
    assert gemma.has_post_norms and gemma.has_qk_norm and gemma.ffn_width == 10240 and gemma.is_tied
    assert any(note.startswith("Of gemma3 only the language part is counted") for note in gemma.notes)
    granite, _ = find_shape(ModelConfig(path="ibm-granite/granite-4.0-h-tiny"))
    assert any(
        note.startswith("Layers of the kind") and "rows of their own" in note for note in granite.notes
    )


@pytest.mark.parametrize("name", ["meta-llama/Llama-3.1-8B", "Qwen/Qwen3-8B"])
def test_real_shapes_are_those_transformers_builds(name):
    assert num_built(built(shipped_shapes()[name])) == REAL[name]


def test_the_shape_of_the_benchmarks_is_llama_3_8b():
    config = json.loads((ROOT / "benchmarks/shapes/llama3_8b/config.json").read_text())
    assert decoder_shape(config, "here") == decoder_shape(
        shipped_shapes()["meta-llama/Llama-3.1-8B"], "there"
    )


@pytest.mark.parametrize("option", [o for o in group_options()["model"] if o not in ("benchmark", "none")])
def test_every_model_option_has_a_shape_without_a_network(option, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    shape, _ = find_shape(compose_config([f"model={option}"]).model)
    assert shape.num_params > 0


def test_the_tiny_model_is_counted_as_it_is_made():
    model = compose_config(["model=tiny"]).model
    shape, _ = find_shape(model)
    config = {"model_type": "llama", "vocab_size": 264, **model.tiny}
    assert shape.num_params == num_built(built(config))


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "vocab_size", "intermediate_size"])
@pytest.mark.parametrize("value", [None, 0, -1, "many", 1.5, True])
def test_a_size_that_is_missing_or_wrong_is_named(key, value):
    config = {"model_type": "llama", **BASE, key: value}
    with pytest.raises(ModelError, match=rf"`{key}` of here must be a positive integer, but is .* instead\."):
        decoder_shape(config, "here")
    with pytest.raises(ModelError, match="but is missing instead"):
        decoder_shape({k: v for k, v in config.items() if k != key}, "here")


@pytest.mark.parametrize("case", [{"model_type": "olmo"}, {"model_type": "gpt2"}], ids=name_of)
def test_an_unknown_architecture_is_built_on_the_meta_device(tmp_path, case):
    config = BASE | case | {"n_embd": 48, "n_layer": 3, "n_head": 6}
    (tmp_path / "config.json").write_text(json.dumps(config))
    shape = meta_shape(config, str(tmp_path), ModelConfig(path=str(tmp_path)))
    model = built(config)
    assert shape.num_params == num_built(model)
    assert shape.num_layers == 3 and shape.hidden_size == 48
    assert {(one.name, one.num_in, one.num_out): one.count for one in shape.linears} == linears_of(model)
    assert case["model_type"] in shape.notes[0]
