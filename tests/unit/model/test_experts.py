"""What is read of a mixture of experts: weights that a token goes to, and how tokens are spread."""

import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

from tests.helpers.families import FAMILIES
from tests.helpers.tiny_families import tiny_config
from trainer.model.expert_load import ExpertLoad, spread
from trainer.model.experts import count_weights, describe_mixture, expert_tensors
from trainer.run.sizes import model_shape

SHAPE = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
MIXTRAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
ATTENTION = 2 * 16 * 16 + 2 * 16 * 8
EXPERT = 3 * 16 * 24


def built(model_type, options, device="cpu"):
    with torch.device(device):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **{**SHAPE, **options}))


def test_a_dense_model_is_multiplied_with_all_but_its_embeddings():
    counts = count_weights(built("llama", {}, "meta"))
    assert counts.num_matmul == 2 * (ATTENTION + EXPERT) + 40 * 16
    assert counts.num_experts == counts.num_idle == 0


@pytest.mark.parametrize("tied", [True, False])
def test_a_token_of_a_mixture_is_multiplied_with_the_experts_it_goes_to(tied):
    model = built("mixtral", {**MIXTRAL, "tie_word_embeddings": tied}, "meta")
    counts = count_weights(model)
    # Of four experts two; the router is 4 x 16, and a tied head is a product all the same.
    assert counts.num_matmul == 2 * (ATTENTION + 2 * EXPERT + 4 * 16) + 40 * 16
    assert counts.num_experts == 2 * 4 * EXPERT and counts.num_idle == 2 * 2 * EXPERT
    shape = model_shape(model, 12345)
    assert shape is not None
    assert (shape.num_matmul_params, shape.num_layers, shape.q_dim) == (counts.num_matmul, 2, 16)


def test_convolutions_are_no_experts():
    model = nn.ModuleDict({"conv": nn.Conv1d(4, 4, 3)})
    assert expert_tensors(model) == {}


def heard(load, model, ids=None, is_token_N=None):
    with load.hearing(is_token_N):
        model(input_ids=torch.arange(10)[None] if ids is None else ids)


def test_tokens_of_each_expert_are_counted_while_it_is_heard():
    model = built("mixtral", MIXTRAL)
    load = ExpertLoad(model)
    assert load.sizes == [4, 4]
    model(input_ids=torch.arange(10)[None])
    assert load.take() == [0.0] * 8
    heard(load, model)
    counts = load.take()
    # Ten tokens go to two experts in each of two layers.
    assert sum(counts[:4]) == sum(counts[4:]) == 20 and load.take() == [0.0] * 8


def test_padding_is_left_out_and_steps_are_told_apart():
    model = built("mixtral", MIXTRAL)
    load = ExpertLoad(model)
    is_token_N = torch.arange(10) < 7
    heard(load, model, is_token_N=is_token_N)
    first = load.take_step()
    heard(load, model, ids=torch.arange(7)[None])
    assert sum(first) == 2 * 2 * 7 and load.take_step() == first
    heard(load, model)
    assert sum(load.take()) == 2 * 2 * (7 + 7 + 10)
    assert load.take_step() == [0.0] * 8


def test_the_spread_is_a_mean_over_layers_that_were_heard():
    assert spread([6.0, 2.0, 0.0, 0.0, 0.0, 0.0, 3.0, 5.0], [2, 2, 2, 2]) == {
        "experts_busiest_share": pytest.approx((6 / 8 + 5 / 8) / 2),
        "experts_idlest_share": pytest.approx((2 / 8 + 3 / 8) / 2),
        "experts_without_tokens": 0.0,
    }
    assert spread([4.0, 0.0], [2])["experts_without_tokens"] == 1
    assert spread([0.0, 0.0], [2]) == {} and spread([], []) == {}


@pytest.mark.parametrize(
    ("model_type", "options"),
    [
        ("glm4_moe", {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}),
        ("gpt_oss", MIXTRAL),
        ("phimoe", MIXTRAL),
        ("ernie4_5_moe", {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 8}),
    ],
)
def test_the_choice_of_other_families_is_heard(model_type, options):
    model = built(model_type, options)
    load = ExpertLoad(model)
    heard(load, model)
    counts, sizes = load.take(), load.sizes
    assert len(sizes) >= 1 and spread(counts, sizes)
    assert count_weights(model).num_idle == count_weights(model).num_experts // 2


@pytest.mark.parametrize(
    ("model_type", "options"),
    [
        ("llama4_text", {**MIXTRAL, "intermediate_size_mlp": 24}),
        ("jetmoe", {**MIXTRAL, "kv_channels": 8}),
        ("granitemoe", MIXTRAL),
    ],
)
def test_the_choice_of_families_whose_experts_are_told_otherwise_is_heard(model_type, options):
    """Scores that are 0 but for the chosen experts, and how many tokens each gets, instead of the chosen ones."""
    model = built(model_type, options)
    load = ExpertLoad(model)
    heard(load, model)
    counts = load.take()
    assert [sum(counts[start : start + 4]) for start in range(0, len(counts), 4)] == [20.0] * len(load.sizes)


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("LongCat-Flash", {4}),  # and two without weights
        ("Inkling, language model", {4}),  # and one that all tokens go to, held as the others are
        ("RecurrentGemma", set()),  # blocks of a gate, held as experts are
    ],
)
def test_only_experts_that_are_chosen_and_have_weights_are_counted(family, sizes):
    if FAMILIES[family].model_type not in CONFIG_MAPPING:
        pytest.skip("this transformers does not have the family")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(FAMILIES[family]))
    load = ExpertLoad(model)
    heard(load, model)
    counts, choices = load.take(), 20 * len(load.sizes)
    assert set(load.sizes) == sizes
    assert sum(counts) < choices if family == "LongCat-Flash" else sum(counts) == choices


class Block(nn.Module):
    """Three experts; tokens go where a function says."""

    def __init__(self, choose):
        super().__init__()
        self.experts, self.choose = Experts(), choose
        self.gate = nn.Linear(2, 3)

    def forward(self, hidden):
        return self.experts(hidden, self.choose(self.gate(hidden)))


class Experts(nn.Module):
    """One tensor of three matrices."""

    def __init__(self):
        super().__init__()
        self.matrices = nn.Parameter(torch.zeros(3, 2, 2))

    def forward(self, hidden, choice):
        return hidden


CHOICES = {
    "chosen": (lambda logits: torch.tensor([[0, 1], [0, 2]]), [2.0, 1.0, 1.0]),
    "counts": (lambda logits: [2, 0, 0], [2.0, 0.0, 0.0]),
    "neither": (lambda logits: logits, [0.0, 0.0, 0.0]),
}


@pytest.mark.parametrize("how", CHOICES)
def test_a_choice_that_cannot_be_seen_is_said_once(how, caplog):
    choose, expected = CHOICES[how]
    model = nn.Sequential(Block(choose))
    load = ExpertLoad(model)
    for _ in range(2):
        with load.hearing(None):
            model(torch.ones(2, 2))
        assert load.take() == expected
    assert caplog.text.count("cannot be seen (0.experts)") == (how == "neither")


ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "n_shared_experts": 1}


def test_a_mixture_says_what_is_active_what_is_rounded_and_what_stays():
    model = built("glm4_moe", {**ROUTED, "first_k_dense_replace": 1}, "meta")
    model._keep_in_fp32_modules_strict = {"gate.weight"}  # an older transformers keeps the bias alone
    sentences = describe_mixture(model, "bf16", is_packed=True)
    # One layer of four experts of three matrices of 16 x 8, two bytes a weight.
    assert sentences[0] == (
        "Mixture of experts: a token goes to 2 of 4 experts of a layer; 1,536 parameters are experts, 768 of them "
        "active."
    )
    assert sentences[1] == "No loss evens out the use of experts: the model's config.json has none."
    assert sentences[2].startswith(
        "Routers compute as the model's own code does, in bf16 where that says nothing"
    )
    assert "stay in bf16: 3.072e-06 GB in all" in sentences[3]
    assert sentences[4].startswith("1 weights that transformers keeps in float32 (gate.weight 1) are bf16")
    assert sentences[5].startswith(
        "1 tensors that steer the choice of experts have no gradient (gate.e_score_corr"
    )
    assert len(describe_mixture(model, "fp32", is_packed=False)) == 3
    assert describe_mixture(model, "bf16", is_packed=False, num_exact=1)[2] == (
        "Routers that multiply, score and choose in float32, with weights in bf16: 1 (model.router_float32)."
    )


def test_a_dense_model_and_a_router_with_gradient_say_nothing_of_that():
    assert describe_mixture(built("llama", {}, "meta"), "bf16", is_packed=False) == []
    said = describe_mixture(built("gpt_oss", MIXTRAL, "meta"), "bf16", is_packed=False)
    assert len(said) == 3 and said[1].endswith("has none switched on (output_router_logits is false).")
    config = {**MIXTRAL, "output_router_logits": True, "router_aux_loss_coef": 0.02}
    assert describe_mixture(built("mixtral", config, "meta"), "fp32", is_packed=False)[1] == (
        "The loss includes 0.02 times the routers' own loss, as output_router_logits of config.json says."
    )
