"""The routers' loss of a micro-batch is that of the model's own class."""

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from trainer.errors import ModelError
from trainer.model.balance import balance_of
from trainer.model.causal import CausalLM
from trainer.model.head.head import install_loss_head
from trainer.model.head.nll import Nll

SHAPE = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "moe_intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "num_local_experts": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
    "router_aux_loss_coef": 0.5,
    "output_router_logits": True,
}
IDS = torch.arange(2, 22).reshape(2, 10)


def built(model_type):
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **SHAPE)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("model_type", ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss", "phimoe"])
def test_loss_and_gradient_are_those_of_the_class(model_type):
    model = built(model_type)
    mask = torch.ones_like(IDS)
    mask[1, 7:] = 0
    expected = model(input_ids=IDS, attention_mask=mask, use_cache=False).aux_loss
    names = [name for name, _ in model.named_parameters()]
    gradients = torch.autograd.grad(0.5 * expected, list(model.parameters()), allow_unused=True)
    balance = balance_of(model, 0.5)
    install_loss_head(model, 8)
    ask = Nll(torch.full((20,), -100))
    whole = CausalLM(model, balance=balance)
    with torch.no_grad():
        whole(ask, input_ids=IDS, attention_mask=mask)
    assert balance.take() is None
    whole(ask, input_ids=IDS, attention_mask=mask, is_token_N=mask.reshape(-1).bool())
    found = balance.take()
    torch.testing.assert_close(found, 0.5 * expected)
    ours = torch.autograd.grad(found, list(model.parameters()), allow_unused=True)
    for name, actual, meant in zip(names, ours, gradients, strict=True):
        assert (actual is None) == (meant is None), name
        if meant is not None:
            torch.testing.assert_close(actual, meant)
    seen, count = balance.take_seen()
    assert count == 1 and seen == pytest.approx(float(expected.detach())) and balance.take_seen() == (0.0, 0)


def test_a_class_without_such_a_loss_is_refused():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SHAPE))
    with pytest.raises(ModelError, match="`output_router_logits` must be false for LlamaForCausalLM"):
        balance_of(model, 0.1)


def test_a_model_that_gives_no_logits_of_routers_is_refused():
    with pytest.raises(ModelError, match="must give the logits of its routers"):
        balance_of(built("mixtral"), 0.1).add(None, None)
