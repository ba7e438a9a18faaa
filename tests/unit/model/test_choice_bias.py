"""Biases of routers: moved by the tokens of experts, refused where they cannot be, proved to steer."""

import re

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from tests.unit.model.test_experts import SHAPE
from trainer.config.model import Remat
from trainer.data.pack.collate import IGNORE
from trainer.dist.mesh import alone
from trainer.engine.engine import undivided
from trainer.engine.policy import Policy
from trainer.errors import ModelError, SelfCheckError
from trainer.evaluate.proofs.choice import check_choice
from trainer.model.causal import CausalLM
from trainer.model.choice_bias import choice_bias_of
from trainer.model.expert_load import ExpertLoad
from trainer.model.head.head import install_loss_head
from trainer.model.head.nll import Nll
from trainer.model.remat import apply_remat

ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "n_shared_experts": 1}
GLM = ROUTED | {"first_k_dense_replace": 1, "num_hidden_layers": 3, "n_group": 1, "topk_group": 1}
LATENT = {
    **{"n_routed_experts": 8, "n_group": 2, "num_key_value_heads": 2, "kv_lora_rank": 16, "q_lora_rank": 24},
    **{"qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16},
}
MINIMAX = {"num_local_experts": 4, "num_experts_per_tok": 2}
ERNIE = {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 8, "moe_layer_start_index": 0}


def built(model_type, options, dtype=torch.float32):
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**SHAPE, **options})
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def with_bias(model, rate=0.001):
    load = ExpertLoad(model)
    return CausalLM(model, expert_load=load, choice_bias=choice_bias_of(model, load, rate))


def test_the_bias_of_an_expert_with_few_tokens_rises_and_of_one_with_many_falls():
    whole = with_bias(built("glm4_moe", GLM))
    bias = whole.choice_bias
    before = [values.clone() for values in bias.biases]
    assert len(before) == 2 and bias.places == [slice(0, 4), slice(4, 8)]
    # Means of 5 and of 2.25 tokens an expert.
    bias.adjust([8.0, 5.0, 7.0, 0.0, 2.0, 2.0, 2.0, 3.0])
    moved = [(now - old).tolist() for now, old in zip(bias.biases, before, strict=True)]
    assert moved[0] == pytest.approx([-0.001, 0.0, -0.001, 0.001])
    assert moved[1] == pytest.approx([0.001, 0.001, 0.001, -0.001])
    gate = whole.lm.model.layers[1].mlp.gate
    assert torch.equal(gate.e_score_correction_bias, bias.exact[:4])


def test_steps_that_bf16_would_lose_add_up():
    model = built("minimax_m2", MINIMAX, torch.bfloat16)
    gate = model.model.layers[0].mlp
    gate.e_score_correction_bias.fill_(8.0)
    bias = with_bias(model).choice_bias
    assert gate.e_score_correction_bias.dtype == torch.bfloat16  # its neighbours are 1/16 away
    for _ in range(40):
        bias.adjust([0.0, 2.0, 2.0, 4.0] * 2)
    assert gate.e_score_correction_bias.tolist() == [8.0625, 8.0, 8.0, 7.96875]
    assert bias.exact[:4].tolist() == pytest.approx([8.04, 8.0, 8.0, 7.96], abs=1e-4)


def test_a_checkpoint_holds_the_exact_values():
    whole = with_bias(built("glm4_moe", GLM))
    whole.choice_bias.adjust([1.0, 0.0, 0.0, 0.0] * 2)
    other = with_bias(built("glm4_moe", GLM))
    other.load_state_dict(whole.state_dict())
    assert torch.equal(other.choice_bias.exact, whole.choice_bias.exact)
    assert "choice_bias.exact" in whole.state_dict()


@pytest.mark.parametrize(
    ("model_type", "options", "why"),
    [
        ("mixtral", MINIMAX, "no tensor without a gradient steers the choice of its experts. Set it to 0."),
        ("llama", {}, "no tensor without a gradient steers"),
        (
            "ernie4_5_moe",
            ERNIE,
            "e_score_correction_bias is a frozen parameter, which a checkpoint leaves out",
        ),
    ],
)
def test_a_model_without_such_a_bias_is_refused(model_type, options, why):
    model = built(model_type, options)
    with pytest.raises(ModelError) as refusal:
        choice_bias_of(model, ExpertLoad(model), 0.001)
    said = str(refusal.value)
    assert said.startswith(
        f"`train.router_bias_rate` must be 0 for {type(model).__name__}, but is 0.001 instead: "
    )
    assert why in said


@pytest.mark.parametrize("is_recomputed", [False, True])
@pytest.mark.parametrize("in_rows", [False, True])
def test_tokens_count_once_and_padding_does_not(is_recomputed, in_rows):
    model = built("glm4_moe", GLM)
    apply_remat(model, -1 if is_recomputed else 0, Remat.first)
    install_loss_head(model, 8)
    whole = with_bias(model).train()
    is_token_N = torch.arange(12) < 9
    labels_N = torch.where(is_token_N, 3, IGNORE)
    inputs = {"input_ids": torch.arange(2, 14)[None]}
    if in_rows:  # documents of 5 and 4 tokens, then three positions of padding
        rows = torch.tensor([[2, 3, 4, 5, 6], [7, 8, 9, 10, 7]])
        place_N = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0])
        inputs = {"rows": [rows], "place_N": place_N}
    with torch.no_grad():
        whole(Nll(labels_N), is_token_N=is_token_N, **inputs)
    assert sum(whole.expert_load.take_step()) == 0
    loss, _ = whole(Nll(labels_N), is_token_N=is_token_N, **inputs)
    loss.backward()
    counts = whole.expert_load.take_step()
    assert sum(counts[:4]) == sum(counts[4:]) == 2 * 9


def policy_of(whole, in_rows=False):
    return Policy(undivided(whole), alone(torch.device("cpu")), False, in_rows)


@pytest.mark.parametrize(
    ("model_type", "options"),
    [
        ("glm4_moe", GLM),
        ("deepseek_v3", GLM | LATENT),
        ("minimax_m2", MINIMAX),
    ],
)
def test_a_raised_bias_is_proved_to_draw_every_token_and_is_put_back(model_type, options):
    model = built(model_type, options)
    install_loss_head(model, 8)
    policy = policy_of(with_bias(model))
    before = [values.clone() for values in policy.choice_bias.biases]
    check_choice(policy, 40, 64)
    assert all(map(torch.equal, policy.choice_bias.biases, before))
    assert sum(policy.expert_load.take()) == 0


def test_a_tensor_that_only_looks_like_a_bias_is_refused():
    model = built("mixtral", MINIMAX)
    for layer in model.model.layers:
        layer.mlp.register_buffer("seen_so_far", torch.zeros(4))
    install_loss_head(model, 8)
    policy = policy_of(with_bias(model))
    with pytest.raises(SelfCheckError, match=re.escape("tokens of 48 were counted for it")):
        check_choice(policy, 40, 64)
