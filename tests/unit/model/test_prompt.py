"""Virtual tokens before packed documents: each document is what plain peft makes of it alone."""

import numpy as np
import pytest
import torch
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from tests.helpers.tiny import SHAPE
from trainer.config.model import Remat
from trainer.config.tune import Init, TuneConfig, TuneMethod
from trainer.dist.mesh import alone
from trainer.engine.engine import undivided
from trainer.engine.policy import Policy
from trainer.errors import ConfigError, ModelError, SelfCheckError
from trainer.evaluate.proofs.frozen import check_heard
from trainer.evaluate.proofs.isolation import check_isolation
from trainer.model.cache import empty_cache
from trainer.model.causal import CausalLM
from trainer.model.head.ask import Logits
from trainer.model.head.head import install_loss_head
from trainer.model.head.nll import Nll
from trainer.model.masks import block_mask
from trainer.model.remat import apply_remat
from trainer.model.tune.adapters import adapter_off, apply_tuning

LENGTHS = [8, 7, 5]
NUM_VIRTUAL = 5
NOISE = 1e-5
ALONE = alone(torch.device("cpu"))
METHODS = [TuneMethod.prefix, TuneMethod.prompt]


def build():
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=264, initializer_range=0.1, pad_token_id=0, use_cache=False, **SHAPE)
    return LlamaForCausalLM(config).train()


def plain_peft(method, init):
    torch.manual_seed(0)
    common = {"num_virtual_tokens": NUM_VIRTUAL, "task_type": "CAUSAL_LM"}
    if method is TuneMethod.prefix:
        config = PrefixTuningConfig(**common, init_weights="zero" if init is Init.zero else None)
    else:
        kind = "RANDOM" if init is Init.gaussian else "SAMPLE_VOCAB"
        config = PromptTuningConfig(**common, prompt_tuning_init=kind)
    model = build()
    torch.manual_seed(0)
    return get_peft_model(model, config)


def ours(method, init=Init.default, remat=0):
    model = build()
    tuned = apply_tuning(model, TuneConfig(method=method, init=init, virtual_tokens=NUM_VIRTUAL), seed=0)
    install_loss_head(model, 48)
    apply_remat(model, remat, Remat.first, has_prefix=method is TuneMethod.prefix)
    return CausalLM(model, tuned.virtual).train(), tuned


def packed():
    torch.manual_seed(1)
    tokens = torch.randint(4, 264, (1, sum(LENGTHS)))
    segments = torch.repeat_interleave(torch.arange(3), torch.tensor(LENGTHS))[None]
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    labels = torch.where(torch.rand(tokens.shape) < 0.7, tokens, -100)
    return tokens, labels, {"position_ids": positions, "attention_mask": block_mask(segments)}


@pytest.mark.parametrize("remat", [0, -1])
@pytest.mark.parametrize(
    ("method", "init"),
    [
        (TuneMethod.prefix, Init.default),
        (TuneMethod.prefix, Init.zero),
        (TuneMethod.prompt, Init.default),
        (TuneMethod.prompt, Init.gaussian),
    ],
)
def test_a_pack_gives_loss_and_gradient_of_its_documents_alone_in_peft(method, init, remat):
    """Loss off: a mask, position or layout. Only the gradient off with remat: the prefix is lost on recomputing."""
    objective, tuned = ours(method, init, remat)
    plain = plain_peft(method, init)
    tokens, labels, where = packed()
    loss, _ = objective(Nll(labels.reshape(-1)), input_ids=tokens, **where)
    loss.backward()
    expected = torch.zeros(())
    parts = zip(tokens[0].split(LENGTHS), labels[0].split(LENGTHS), strict=True)
    for ids, wanted in parts:
        logits = plain(input_ids=ids[None], use_cache=False).logits[0, -len(ids) :]
        expected = expected + torch.nn.functional.cross_entropy(logits, wanted, reduction="sum")
    expected.backward()
    table = plain.prompt_encoder["default"].embedding.weight
    assert torch.equal(tuned.virtual.encoder.embedding.weight, table)
    assert tuned.num_trainable == table.numel()
    assert loss.item() == pytest.approx(expected.item(), rel=NOISE)
    torch.testing.assert_close(
        tuned.virtual.encoder.embedding.weight.grad,
        table.grad,
        rtol=NOISE,
        atol=NOISE * table.grad.abs().max(),
    )
    assert all(parameter.grad is None for parameter in objective.lm.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_left_padded_generation_with_a_cache_gives_peft_s_logits(method):
    objective, _ = ours(method)
    objective.eval()
    tokens = packed()[0][:, :9]
    with torch.no_grad():
        expected = plain_peft(method, Init.default)(input_ids=tokens, use_cache=False).logits[0, -2:]
        cache = empty_cache(objective.lm.config)
        ids = torch.cat([torch.zeros(1, 3, dtype=torch.long), tokens[:, :8]], dim=1)
        mask = (torch.arange(11) >= 3).long()[None]
        positions = (torch.arange(11) - 3).clamp(min=0)[None]
        first = objective(
            Logits(torch.tensor([10])),
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
        )
        second = objective(
            Logits(torch.tensor([0])),
            input_ids=tokens[:, 8:],
            attention_mask=torch.ones(1, 12, dtype=torch.long).index_fill(1, torch.arange(3), 0),
            position_ids=torch.tensor([[8]]),
            past_key_values=cache,
        )
    torch.testing.assert_close(torch.cat([first, second]), expected, rtol=1e-4, atol=1e-5)


def policy_of(objective):
    return Policy(undivided(objective), ALONE, False)


@pytest.mark.parametrize("method", METHODS)
def test_virtual_tokens_leak_nothing_between_documents_and_reach_all_of_them(method):
    objective, _ = ours(method)
    policy = policy_of(objective)
    assert check_isolation(policy, 264, 60).moved < 1e-6
    assert check_heard(policy, np.arange(40)) > 1e-3
    with adapter_off(objective), torch.no_grad():
        tokens, _, where = packed()
        off = objective(Logits(), input_ids=tokens, **where)
        assert torch.equal(off, CausalLM(objective.lm)(Logits(), input_ids=tokens, **where))


def test_a_document_that_does_not_see_the_virtual_tokens_is_found(monkeypatch):
    from trainer.model.tune import prompt

    spread = prompt._with_virtual

    def deaf(mask, num_virtual, adds_rows):
        wide = spread(mask, num_virtual, adds_rows)
        wide[..., -5:, :num_virtual] = False
        return wide

    monkeypatch.setattr(prompt, "_with_virtual", deaf)
    with pytest.raises(SelfCheckError, match="Every document of a pack must see the virtual tokens"):
        check_heard(policy_of(ours(TuneMethod.prefix)[0]), np.arange(15))


@pytest.mark.parametrize("method", METHODS)
def test_virtual_tokens_need_layers_that_keep_plain_keys(method):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model("mistral", vocab_size=64, sliding_window=16, **SHAPE)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(
        ConfigError, match=rf"must be another than prefix and prompt for mistral.*{method.value}.*tune=lora"
    ):
        apply_tuning(model, TuneConfig(method=method), seed=0)


def test_a_prefix_is_not_lost_silently_where_transformers_drops_it(monkeypatch):
    from transformers.modeling_layers import GradientCheckpointingLayer

    monkeypatch.delattr(GradientCheckpointingLayer, "_can_checkpoint_with_cache")
    with pytest.raises(ModelError, match=r"`model.checkpoint_layers` must be 0 for tune.method=prefix"):
        ours(TuneMethod.prefix, remat=-1)
