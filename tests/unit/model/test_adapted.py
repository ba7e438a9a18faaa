"""What LoRA sits on and what it leaves out, in models whose layers are not all linear ones."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from trainer.config.tune import TuneConfig, TuneMethod
from trainer.errors import ConfigError
from trainer.model.tune.adapted import counted, counted_layers
from trainer.model.tune.adapters import apply_tuning

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
        counted(name for name, _ in found.left_out) == "experts.down_proj 2, experts.gate_up_proj 2, gate 2"
    )
    # Two layers of four experts with three matrices of 16 x 24, and a router of 4 x 16.
    assert sum(size for _, size in found.left_out) == 2 * (4 * 3 * 16 * 24 + 4 * 16)


def test_named_layers_leave_out_experts_only():
    _, found = tuned("mixtral", EXPERTS, target=["q_proj"])
    assert found.described == "2 linear layers (q_proj 2)"
    assert counted(name for name, _ in found.left_out) == "experts.down_proj 2, experts.gate_up_proj 2"


def test_layers_that_peft_takes_for_experts_are_refused_unless_named():
    with pytest.raises(ConfigError) as caught:
        tuned("glm4_moe", GLM)
    said = str(caught.value)
    assert "['all_linear'] has down_proj 2, gate_proj 2, up_proj 2 without an adapter instead" in said
    assert "experts.down_proj 1, experts.gate_up_proj 1" in said
    assert "tune.target=[k_proj,o_proj,q_proj,v_proj] to leave both out" in said
    _, attention = tuned("glm4_moe", GLM, target=["k_proj", "o_proj", "q_proj", "v_proj"])
    assert attention.tensors == () and len(attention.modules) == 8
    _, named = tuned("glm4_moe", GLM, target=["q_proj", "gate_proj", "up_proj", "down_proj"])
    assert named.described == (
        "2 linear layers (q_proj 2) and 2 tensors of experts (experts.down_proj 1, experts.gate_up_proj 1)"
    )
    assert named.tensors == (
        "model.layers.1.mlp.experts.down_proj",
        "model.layers.1.mlp.experts.gate_up_proj",
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target": ["gate_proj"]}, r"`tune` must be what peft can add to glm4_moe.*without also targeting"),
        ({"target_pattern": r".*\.mlp\..*_proj"}, r"`tune.target_pattern` must name layers that peft adapts"),
        (
            {"target": ["gate_proj", "up_proj", "down_proj"], "dropout": 0.1},
            r"`tune` must be what peft can add to glm4_moe",
        ),
    ],
)
def test_what_peft_refuses_is_a_sentence(options, said):
    with pytest.raises(ConfigError, match=said):
        tuned("glm4_moe", GLM, **options)


@pytest.mark.parametrize("model_type", ["phimoe", "llama4_text"])
def test_routers_that_are_made_of_linear_layers_are_not_adapted(model_type):
    model, found = tuned(model_type, {**EXPERTS, "intermediate_size_mlp": 24})
    assert not any("router" in name for name in found.modules)
    assert "router" in counted(name for name, _ in found.left_out)
    assert any("router" in name for name, _ in model.named_modules())


def test_a_model_without_linear_layers_is_told_to_train_whole():
    with pytest.raises(
        ConfigError, match=r"another than lora for gpt2, which has no linear layers.*tune=full"
    ):
        tuned("gpt2", {"n_embd": 16, "n_layer": 2, "n_head": 2})
