"""What LoRA sits on and what it leaves out, in models whose layers are not all linear ones."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from trainer.config.tune import TuneConfig, TuneMethod
from trainer.errors import ConfigError
from trainer.model.tune.adapted import counted, counted_layers
from trainer.model.tune.adapters import apply_tuning, describe_tuned

SHAPE = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
GLM = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}


def tuned(model_type, options, **tune):
    config = AutoConfig.for_model(model_type, **{**SHAPE, **options})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        return model, apply_tuning(model, TuneConfig(method=TuneMethod.lora, r=2, **tune), seed=0)


def test_a_dense_model_has_every_layer_adapted_and_nothing_left_out():
    _, found = tuned("llama", {})
    assert found.described == (
        "14 linear layers (down_proj 2, gate_proj 2, k_proj 2, o_proj 2, q_proj 2, up_proj 2, v_proj 2)"
    )
    assert found.tensors == () and found.left_out == ()


def test_experts_and_routers_without_an_adapter_are_counted_with_their_parameters():
    _, found = tuned("mixtral", EXPERTS)
    assert counted_layers(found.modules) == "k_proj 2, o_proj 2, q_proj 2, v_proj 2"
    assert (
        counted(name for name, *_ in found.left_out) == "experts.down_proj 2, experts.gate_up_proj 2, gate 2"
    )
    # Two layers of four experts with three matrices of 16 x 24, and a router of 4 x 16.
    assert sum(size for _, size, _ in found.left_out) == 2 * (4 * 3 * 16 * 24 + 4 * 16)


def test_named_layers_leave_out_experts_only():
    _, found = tuned("mixtral", EXPERTS, target=["q_proj"])
    assert found.described == "2 linear layers (q_proj 2)"
    assert counted(name for name, *_ in found.left_out) == "experts.down_proj 2, experts.gate_up_proj 2"


DENSE_AND_SHARED = "down_proj 2, gate_proj 2, k_proj 2, o_proj 2, q_proj 2, up_proj 2, v_proj 2"
"""One dense layer, one shared expert and attention in both layers."""


def test_dense_and_shared_layers_that_peft_takes_for_experts_are_adapted_as_layers():
    _, found = tuned("glm4_moe", GLM)
    assert found.described == f"14 linear layers ({DENSE_AND_SHARED})"
    assert counted(name for name, *_ in found.left_out) == (
        "experts.down_proj 1, experts.gate_up_proj 1, gate 1"
    )
    assert found.peft_config.target_parameters == [
        f"model.layers.{place}.{name}_proj.weight"
        for place in ("0.mlp", "1.mlp.shared_experts")
        for name in ("down", "gate", "up")
    ]
    assert not any(
        name.endswith(("gate_proj", "up_proj", "down_proj")) for name in found.peft_config.target_modules
    )


def test_experts_are_adapted_when_they_are_asked_for():
    _, found = tuned("glm4_moe", GLM, target=["all_linear", "experts"])
    assert found.described == (
        f"14 linear layers ({DENSE_AND_SHARED}) and 2 tensors of experts (experts.down_proj 1, experts.gate_up_proj 1)"
    )
    assert counted(name for name, *_ in found.left_out) == "gate 1"
    _, named = tuned("glm4_moe", GLM, target=["q_proj", "experts"])
    assert named.described == (
        "2 linear layers (q_proj 2) and 2 tensors of experts (experts.down_proj 1, experts.gate_up_proj 1)"
    )
    _, alone = tuned("mixtral", EXPERTS, target=["experts"])
    assert alone.described == "4 tensors of experts (experts.down_proj 2, experts.gate_up_proj 2)"


def test_gates_smaller_than_the_rank_are_left_out_and_counted():
    _, found = tuned(
        "qwen2_moe", {"num_experts": 4, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 64}
    )
    assert "shared_expert_gate" not in counted_layers(found.modules)
    assert "shared_expert_gate 2" in counted(name for name, *_ in found.left_out)


def test_what_is_left_out_is_said_in_one_line():
    _, found = tuned("mixtral", EXPERTS)
    said = describe_tuned(found, TuneMethod.lora)
    assert said[1:] == [
        "Without an adapter: 9,344 parameters in 6 tensors (experts.down_proj 2, experts.gate_up_proj 2, gate 2). "
        "tune.target=[all_linear,experts] would adapt the experts too; routers stay as they are."
    ]


@pytest.mark.parametrize(
    ("model_type", "options", "said"),
    [
        (
            "glm4_moe",
            {"dora": True},
            r"`tune.dora` must be false on down_proj 2, gate_proj 2, up_proj 2 of glm4_moe",
        ),
        ("llama", {"target": ["all_linear", "experts"]}, r"`tune.target` must leave out experts for llama"),
        (
            "glm4_moe",
            {"target": ["w1"]},
            r"which finds none. Set tune.target=\[all_linear\], or \[all_linear,experts\]",
        ),
    ],
)
def test_what_cannot_be_adapted_is_a_sentence(model_type, options, said):
    with pytest.raises(ConfigError, match=said):
        tuned(model_type, GLM if model_type == "glm4_moe" else {}, **options)


@pytest.mark.parametrize("model_type", ["phimoe", "llama4_text"])
def test_routers_that_are_made_of_linear_layers_are_not_adapted(model_type):
    model, found = tuned(model_type, {**EXPERTS, "intermediate_size_mlp": 24})
    assert not any("router" in name for name in found.modules)
    assert "router" in counted(name for name, *_ in found.left_out)
    assert any("router" in name for name, _ in model.named_modules())


@pytest.mark.parametrize(
    ("model_type", "options", "passed"),
    [
        (
            "granitemoehybrid",
            {"layer_types": ["mamba", "attention"], "position_embedding_type": "nope"},
            "out_proj",
        ),
        ("jamba", {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False}, "dt_proj"),
    ],
)
def test_layers_whose_weight_is_read_past_an_adapter_get_none(model_type, options, passed):
    sizes = {
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "num_local_experts": 2,
        "num_experts": 2,
    }
    _, found = tuned(model_type, {**sizes, **options, "num_experts_per_tok": 1})
    assert passed not in counted_layers(found.modules) and "in_proj" in counted_layers(found.modules)
    assert passed in counted(name for name, *_ in found.left_out)
    with pytest.raises(ConfigError, match=rf"reads the weight of model\.layers\.0\.mamba\.{passed} past"):
        tuned(model_type, {**sizes, **options, "num_experts_per_tok": 1}, target=[passed])


def test_a_model_without_linear_layers_is_told_to_train_whole():
    with pytest.raises(
        ConfigError, match=r"another than lora for gpt2, which has no linear layers.*tune=full"
    ):
        tuned("gpt2", {"n_embd": 16, "n_layer": 2, "n_head": 2})
