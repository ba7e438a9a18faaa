"""Routers in float32 within a model in bf16: they choose as in a model in float32, and nothing else changes."""

import copy

import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from tests.helpers.families import FAMILIES
from tests.helpers.tiny_families import tiny_config
from trainer.config.model import ModelConfig
from trainer.model.attention import AttentionChoice
from trainer.model.exact_routers import ExactForward, exact_routers, is_exact, make_exact, routers_of
from trainer.model.experts import expert_tensors
from trainer.model.load import load_model
from trainer.model.own_code import OwnCode

FEW = [
    *("Mixtral", "Qwen3-MoE", "gpt-oss", "GLM-4.5", "JetMoE", "Llama 4, language model", "LongCat-Flash"),
    *("LFM2-MoE", "Phi-3.5-MoE", "Hunyuan-A13B", "ZAYA1", "Inkling 2, language model"),
]
NUM_TOKENS = 2048


def built(family, dtype=torch.bfloat16):
    if FAMILIES[family].model_type not in CONFIG_MAPPING:
        pytest.skip("this transformers does not have the family")
    torch.manual_seed(0)
    config = tiny_config(FAMILIES[family]).get_text_config()
    config.num_hidden_layers = min(config.num_hidden_layers, 4)
    try:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except ValueError:
        pytest.skip("a model that also sees, and no language model of its own")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "embed" not in name:
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
    return model.eval().to(dtype)


def given_to(model, routers):
    """Return what every router is given in a forward pass of the model, and leave the model as it was."""
    seen, hooks = {}, []
    model = copy.deepcopy(model)
    for name in routers:
        router = model.get_submodule(name)
        make_exact(router)  # Inkling 2's cannot do without in bf16

        def look(module, args, kwargs, name=name):
            seen.setdefault(name, (args, kwargs))

        hooks.append(router.register_forward_pre_hook(look, with_kwargs=True))
    with torch.no_grad():
        model(input_ids=torch.arange(NUM_TOKENS).remainder(250).reshape(8, -1), use_cache=False)
    for hook in hooks:
        hook.remove()
    return seen


def tensors(output):
    return (
        [output] if isinstance(output, torch.Tensor) else [t for t in output if isinstance(t, torch.Tensor)]
    )


def in_float32(value):
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def three_ways(router, args, kwargs):
    """Return what a router gives: as it is, in float32 in whole, and with products in float32."""
    whole = copy.deepcopy(router).float()
    with torch.no_grad():
        own = None if type(router).__name__.startswith("Inkling2") else tensors(router(*args, **kwargs))
        exact = tensors(whole(*map(in_float32, args), **{k: in_float32(v) for k, v in kwargs.items()}))
        make_exact(router)
        found = tensors(router(*args, **kwargs))
    return own, exact, found


def is_mixture(family):
    return FAMILIES[family].model_type in CONFIG_MAPPING and expert_tensors(on_meta(family))


def on_meta(family):
    with torch.device("meta"):
        try:
            return AutoModelForCausalLM.from_config(tiny_config(FAMILIES[family]).get_text_config())
        except ValueError:
            return nn.Module()


@pytest.mark.parametrize(
    "family", [*FEW, *(pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES if f not in FEW)]
)
def test_routers_choose_as_they_do_in_float32_and_give_the_types_they_give(family):
    """Every layer of experts has one; what it chooses is what it chooses when all of it is float32."""
    if family not in FEW and not is_mixture(family):
        pytest.skip("no mixture")
    model = built(family)
    routers = routers_of(model)
    holders = {name.rpartition(".")[0] for name in expert_tensors(model)}
    blocks = {holder.rpartition(".")[0] for holder in holders}
    assert {name.rpartition(".")[0] for name in routers} >= {b for b in blocks if "layers." in b}
    for name, (args, kwargs) in given_to(model, routers).items():
        own, exact, found = three_ways(routers[name], args, kwargs)
        assert own is None or [t.dtype for t in found] == [t.dtype for t in own], name
        for one, meant in zip(found, exact, strict=True):
            if one.is_floating_point():
                scale = float(meant[meant.isfinite()].abs().max())
                assert torch.equal(one.isfinite(), meant.isfinite())
                torch.testing.assert_close(
                    one[one.isfinite()].float(),
                    meant[meant.isfinite()].float(),
                    rtol=2**-8,
                    atol=2**-8 * scale,
                )
            else:
                assert torch.equal(one, meant), name


@pytest.mark.parametrize("family", ["Mixtral", "Qwen3-MoE", "gpt-oss"])
def test_in_bf16_a_router_chooses_others_for_some_tokens(family):
    """Without this there would be nothing to mend."""
    model = built(family)
    routers = routers_of(model)
    differs = 0
    for name, (args, kwargs) in given_to(model, routers).items():
        own, exact, _ = three_ways(routers[name], args, kwargs)
        pairs = zip(own, exact, strict=True)
        differs += sum(int((a != b).any(-1).sum()) for a, b in pairs if not a.is_floating_point())
    assert differs > 0


def test_gradients_are_those_of_float32_rounded_once():
    model = built("Qwen3-MoE")
    name, router = next(iter(routers_of(model).items()))
    ((hidden, *_), _) = given_to(model, {name: router})[name]
    given = hidden.detach().clone().requires_grad_()
    whole = copy.deepcopy(router).float()
    meant = hidden.detach().float().requires_grad_()
    slope = torch.randn(len(hidden.reshape(-1, hidden.shape[-1])), router.top_k)
    whole(meant)[1].backward(slope.to(torch.bfloat16).float())
    make_exact(router)
    router(given)[1].backward(slope.to(torch.bfloat16))
    assert given.grad.dtype == router.weight.grad.dtype == torch.bfloat16
    for found, expected in ((given.grad, meant.grad), (router.weight.grad, whole.weight.grad)):
        torch.testing.assert_close(
            found.float(), expected, rtol=2**-7, atol=float(expected.abs().max()) * 2**-8
        )


def test_nothing_in_float32_waits_for_the_gradient():
    """A copy of the hidden states for every layer would be twice what the layer keeps of them."""
    model = built("Qwen3-MoE")
    router = next(iter(routers_of(model).values()))
    make_exact(router)
    hidden = torch.randn(64, router.weight.shape[1], dtype=torch.bfloat16, requires_grad=True)
    kept = []

    def keep(tensor):
        kept.append(tensor.dtype if tensor.shape[-1] == hidden.shape[-1] else None)
        return tensor

    router(hidden)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        router(hidden)
    assert torch.bfloat16 in kept and torch.float32 not in kept


def test_the_first_pass_leaves_random_numbers_and_what_it_is_given_alone():
    """Phi-3.5-MoE stirs what it is given in place while it trains; the look at its types must not."""
    model = built("Phi-3.5-MoE")
    router = next(iter(routers_of(model).values())).train()
    router.input_jitter_noise = 0.1
    hidden = torch.randn(16, router.weight.shape[1], dtype=torch.bfloat16)
    found = []
    for is_first in (True, False):
        if is_first:
            make_exact(router)
        torch.manual_seed(1)
        given = hidden.clone()
        router(given)
        found.append((given, torch.random.get_rng_state()))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("dtype", "is_on", "exact"), [("bf16", True, True), ("bf16", False, False), ("fp32", True, False)]
)
def test_a_model_is_loaded_so_in_bf16_where_it_is_not_switched_off(tmp_path, dtype, is_on, exact):
    """And stays so when the model's own code is asked, which would choose other experts."""
    built("Mixtral", torch.float32).save_pretrained(tmp_path)
    options = ModelConfig(path=str(tmp_path), router_float32=is_on)
    choice, device = AttentionChoice("sdpa", "asked for"), torch.device("cpu")
    model = load_model(str(tmp_path), options, choice, dtype, None, device).model
    assert len(exact_routers(model)) == exact * len(routers_of(model))
    if exact:  # one that is put in later, as spread experts have it
        router = routers_of(model)[exact_routers(model)[0]]
        del router.forward
        found = OwnCode(model)
        make_exact(router)
        with found.restored():
            assert is_exact(router) and isinstance(router.forward, ExactForward)


def test_a_dense_model_has_none():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING["llama"](num_hidden_layers=1, vocab_size=8))
    assert routers_of(model) == {}
