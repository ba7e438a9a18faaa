"""Activation checkpointing: the layers asked for are computed twice, the others once, the gradients are the same."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from tests.helpers.tiny import SHAPE
from trainer.config.model import Remat
from trainer.errors import ModelError
from trainer.model.remat import apply_remat, checkpointed_layers

NUM_LAYERS = 4


def build():
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=32, **(SHAPE | {"num_hidden_layers": NUM_LAYERS}), use_cache=False)
    return LlamaForCausalLM(config).train()


@pytest.mark.parametrize(
    ("asked", "spread", "expected"),
    [
        (-1, Remat.first, [0, 1, 2, 3]),
        (-1, Remat.even, [0, 1, 2, 3]),
        (0, Remat.first, []),
        (2, Remat.first, [0, 1]),
        (2, Remat.even, [0, 2]),
        (3, Remat.even, [0, 1, 2]),
        (9, Remat.even, [0, 1, 2, 3]),
    ],
)
def test_layers_are_chosen_from_the_front_or_evenly(asked, spread, expected):
    assert checkpointed_layers(NUM_LAYERS, asked, spread) == expected


@given(st.integers(1, 100), st.integers(-1, 120), st.sampled_from(Remat))
def test_as_many_layers_are_chosen_as_asked_for(num_layers, asked, spread):
    chosen = checkpointed_layers(num_layers, asked, spread)
    assert len(chosen) == len(set(chosen)) == (num_layers if asked < 0 else min(asked, num_layers))
    assert chosen == sorted(chosen) and set(chosen) <= set(range(num_layers))
    if spread is Remat.even and len(chosen) > 1:
        gaps = [after - before for before, after in zip(chosen, [*chosen[1:], num_layers], strict=True)]
        assert max(gaps) - min(gaps) <= 1


def calls_and_gradients(asked, spread):
    """Count the forward passes of each layer in one step, and return the gradients."""
    model = build()
    chosen = apply_remat(model, asked, spread)
    calls = [0] * NUM_LAYERS
    for index, layer in enumerate(model.model.layers):

        def count(module, inputs, index=index):
            calls[index] += 1

        layer.mlp.register_forward_pre_hook(count)
    tokens = torch.arange(12).reshape(2, 6)
    model(input_ids=tokens).logits.float().logsumexp(-1).mean().backward()
    return chosen, calls, {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    ("asked", "spread"), [(-1, Remat.first), (2, Remat.first), (2, Remat.even), (0, Remat.even)]
)
def test_chosen_layers_are_computed_twice_and_gradients_do_not_change(asked, spread):
    _, once, expected = calls_and_gradients(0, Remat.first)
    chosen, calls, gradients = calls_and_gradients(asked, spread)
    assert once == [1] * NUM_LAYERS
    assert calls == [2 if index in chosen else 1 for index in range(NUM_LAYERS)]
    assert all(torch.equal(gradients[name], expected[name]) for name in expected)


def test_a_model_without_such_layers_is_refused_unless_none_are_asked_for():
    model = nn.Sequential(nn.Linear(2, 2))
    assert apply_remat(model, 0, Remat.first) == []
    with pytest.raises(ModelError, match=r"must be 0 for Sequential, .* but is -1 instead"):
        apply_remat(model, -1, Remat.first)


def test_an_architecture_whose_layers_are_not_recomputed_is_refused_with_the_fix():
    """JetMoE is one: its class says so, though its layers are of the kind that can be."""
    model = build()
    model.supports_gradient_checkpointing = False
    with pytest.raises(
        ModelError, match=r"must be 0 for LlamaForCausalLM, .* Set model\.checkpoint_layers=0\."
    ):
        apply_remat(model, -1, Remat.first)
    assert apply_remat(model, 0, Remat.first) == []
