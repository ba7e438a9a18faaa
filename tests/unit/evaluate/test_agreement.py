"""The proof that the loss is made from the model's own logits, on models that break it in ways nobody listed."""

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from trainer.dist.mesh import alone
from trainer.engine.engine import undivided
from trainer.engine.policy import Policy
from trainer.errors import SelfCheckError
from trainer.evaluate.proofs.agreement import check_head, check_packing, head_work, packing_work
from trainer.evaluate.proofs.isolation import check_isolation, isolation_work
from trainer.model.causal import CausalLM
from trainer.model.head.head import head_of, install_loss_head

SHAPE = {
    "vocab_size": 264,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "initializer_range": 0.1,
}


def policy_of(model_type="llama", dtype=torch.float32, change=None, later=None, **options):
    """Return a policy of a random model, changed before its head is installed, or later, when nobody looks."""
    torch.manual_seed(0)
    attention = options.pop("attn_implementation", "sdpa")
    config = AutoConfig.for_model(model_type, **{**SHAPE, **options})
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).to(dtype)
    if change is not None:
        change(model)
    install_loss_head(model, 50)
    if later is not None:
        later(model)
    policy = Policy(undivided(CausalLM(model)), alone(torch.device("cpu")), False)
    return policy, model.config


def after_the_head(function):
    """Return what makes a model whose own forward changes its logits, without a word in its configuration."""

    def change(model):
        inner = model.forward

        def forward(*args, **inputs):
            output = inner(*args, **inputs)
            output.logits = function(output.logits)
            return output

        model.forward = forward

    return change


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_type", ["llama", "qwen3", "mixtral"])
def test_plain_models_agree_with_themselves(model_type, dtype):
    policy, config = policy_of(model_type, dtype)
    found = check_head(policy, config, 256)
    assert found.logits <= (1e-6 if dtype is torch.float32 else 2.0**-9)
    assert found.loss <= (1e-5 if dtype is torch.float32 else 0.05)
    assert check_packing(policy, config, 256) <= (1e-4 if dtype is torch.float32 else 2.0**-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda logits: logits * 0.125, r"multiply them by 0\.125 "),
        (lambda logits: logits * 1.02, r"multiply them by 1\.02 "),
        (lambda logits: 5 * torch.tanh(logits / 5), "bend them"),
        (lambda logits: logits + logits.roll(1, -1), "something else"),
    ],
)
def test_logits_that_are_changed_in_a_way_that_was_not_found_stop_the_run(dtype, function, said):
    policy, config = policy_of(dtype=dtype, later=after_the_head(function))
    with pytest.raises(SelfCheckError, match=said):
        check_head(policy, config, 256)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "function",
    [
        lambda logits: logits * 0.125,
        lambda logits: logits * 1.02,
        lambda logits: 5 * torch.tanh(logits / 5),
        lambda logits: 3 * torch.tanh(0.5 * logits / 3),
    ],
)
def test_a_change_that_was_found_is_in_the_loss(dtype, function):
    policy, config = policy_of(dtype=dtype, change=after_the_head(function))
    assert check_head(policy, config, 256).logits <= (1e-6 if dtype is torch.float32 else 2.0**-7)


@pytest.mark.parametrize(
    ("model_type", "options", "scale", "cap"),
    [
        ("granite", {"logits_scaling": 8.0}, 0.125, None),
        ("cohere", {"logit_scale": 0.25}, 0.25, None),
        ("nanochat", {"final_logit_softcapping": 15.0}, 1.0, 15.0),
        ("gemma2", {"final_logit_softcapping": 30.0, "attn_implementation": "eager"}, 1.0, 30.0),
    ],
)
def test_families_that_change_their_logits_agree_with_themselves(model_type, options, scale, cap):
    policy, config = policy_of(model_type, **options)
    assert check_head(policy, config, 256).logits <= 1e-6
    assert (head_of(policy.module).bend.scale, head_of(policy.module).bend.cap) == (scale, cap)


def test_the_key_that_may_say_so_is_named():
    policy, config = policy_of("granite", later=after_the_head(lambda logits: logits * 3), logits_scaling=8.0)
    with pytest.raises(SelfCheckError, match=r"multiply them by 3 .*logits_scaling=8\.0"):
        check_head(policy, config, 256)


def test_an_own_forward_that_cannot_be_called_is_a_sentence():
    def change(model):
        model.forward = lambda **inputs: inputs["nothing"]

    policy, config = policy_of(change=change)
    with pytest.raises(
        SelfCheckError,
        match=r"The model's own forward must run .* KeyError.*nothing'\. Name another model\.path",
    ):
        check_head(policy, config, 256)


def test_logits_that_are_not_finite_are_said_and_left_to_the_loop(caplog):
    def change(model):
        model.model.norm.weight.data[3] = float("nan")

    policy, config = policy_of(change=change)
    found = check_head(policy, config, 256)
    assert found.logits != found.logits
    assert "cannot be proved" in caplog.text


def round_anew(model):
    """Let attention round otherwise where it is given a mask, as another kernel does: a unit in the last place."""
    for layer in model.model.layers:
        inner = layer.self_attn.forward

        def forward(*args, inner=inner, **inputs):
            output, weights = inner(*args, **inputs)
            if inputs.get("attention_mask") is not None:
                signs = torch.randint(0, 2, output.shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
                output = output * (1 + torch.finfo(output.dtype).eps * signs).to(output.dtype)
            return output, weights

        layer.self_attn.forward = forward


def see_all(model):
    """Let every token see all earlier ones, whatever mask is given."""
    inner = model.model.forward

    def forward(*args, **inputs):
        if inputs.get("attention_mask") is not None:
            inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"]).tril()
        return inner(*args, **inputs)

    model.model.forward = forward


def test_rounding_of_many_layers_is_no_difference_and_a_leak_through_them_is():
    """It grows with the layers: no constant is above that of every model and below every leak."""
    sizes = {"num_hidden_layers": 32, "initializer_range": 0.3}
    policy, config = policy_of("llama", torch.bfloat16, round_anew, **sizes)
    assert 2.0**-4 < check_packing(policy, config, 256) < 0.5
    policy, config = policy_of("llama", torch.bfloat16, later=see_all, **sizes)
    with pytest.raises(SelfCheckError, match="A document in a pack must be what it is alone"):
        check_packing(policy, config, 256)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seq_len", [48, 64, 200, 256])
def test_a_window_that_the_configuration_tells_is_kept(dtype, seq_len):
    policy, config = policy_of("mistral", dtype, sliding_window=40)
    assert check_packing(policy, config, seq_len) <= (1e-4 if dtype is torch.float32 else 2.0**-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_window_that_is_not_in_the_masks_stops_the_run(dtype):
    """As of an architecture whose windows this trainer does not know: its configuration names them otherwise."""
    policy, config = policy_of("mistral", dtype, sliding_window=40)
    policy.module.lm.config = copy.copy(config)
    policy.module.lm.config.sliding_window = None
    with pytest.raises(SelfCheckError, match="window of 40 tokens"):
        check_packing(policy, config, 256)
    check_packing(policy, config, 32)  # this run would not see it


def test_a_longer_number_that_nothing_uses_hides_no_window():
    policy, config = policy_of("mistral", sliding_window=230, chunk_size=4096)
    policy.module.lm.config = copy.copy(config)
    policy.module.lm.config.sliding_window = None
    with pytest.raises(SelfCheckError, match="window of 230 tokens"):
        check_packing(policy, config, 512)


def test_a_document_that_hears_the_one_before_it_stops_the_run():
    policy, config = policy_of("lfm2", layer_types=["conv", "full_attention"])
    with pytest.raises(SelfCheckError, match=r"must be what it is alone.*conv"):
        check_packing(policy, config, 256)


def passes_of(check, policy, *arguments):
    """Return the tokens of each pass of a check, as it tells them, and how often the model ran."""
    works, calls = [], []
    hook = policy.module.lm.model.register_forward_hook(lambda *seen: calls.append(1))
    check(policy, *arguments, before_pass=works.append)
    hook.remove()
    assert len(calls) == len(works)
    return works


def test_proofs_of_a_model_that_is_right_send_no_token_twice_to_measure_rounding(monkeypatch):
    """On a slow processor each pass takes minutes; packs of 512 tokens."""
    policy, config = policy_of("llama")
    assert passes_of(check_head, policy, config, 512) == [64, 64, 64]
    assert head_work(512) == 3 * 64
    works = passes_of(check_packing, policy, config, 512)
    assert works == [224, 192] and sum(works) == packing_work(config, 512)
    assert passes_of(check_isolation, policy, 264, 512) == [192, 192, 192], "a short pass is timed twice"
    monkeypatch.setattr("trainer.evaluate.proofs.isolation.HELD_UP_S", 0.0)
    works = passes_of(check_isolation, policy, 264, 512)
    assert works == [192, 192] and sum(works) == isolation_work(512, 0)


def test_rounding_is_measured_where_more_is_found_than_is_allowed_anyway():
    sizes = {"num_hidden_layers": 32, "initializer_range": 0.3}
    policy, config = policy_of("llama", torch.bfloat16, round_anew, **sizes)
    assert passes_of(check_packing, policy, config, 256) == [224, 192, 192]
