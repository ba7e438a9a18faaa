"""A policy of one process in float64: what it says of a pack is what plain torch says of each document alone."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from trainer.config.model import Remat
from trainer.config.tune import TuneConfig, TuneMethod
from trainer.data.pack.collate import IGNORE, collate
from trainer.data.types import Pack
from trainer.dist.mesh import alone
from trainer.engine.engine import undivided
from trainer.engine.policy import Policy
from trainer.errors import ModelError
from trainer.model.causal import CausalLM
from trainer.model.head.head import install_loss_head
from trainer.model.remat import apply_remat
from trainer.model.tune.adapters import apply_tuning

SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
LENGTHS = [[9, 6, 5], [12, 8]]


def build(is_lora, remat, chunk=7):
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=61, initializer_range=0.2, use_cache=False, **SHAPE)
    model = LlamaForCausalLM(config).double().train()
    if is_lora:
        apply_tuning(model, TuneConfig(method=TuneMethod.lora, r=3), seed=0)
        generator = torch.Generator().manual_seed(3)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.data = torch.randn(parameter.shape, generator=generator).double() / 5
                assert "lora" in name
    install_loss_head(model, chunk)
    apply_remat(model, remat, Remat.first, has_prefix=False)
    scores = torch.nn.Linear(32, 1, bias=False).double()
    return Policy(undivided(CausalLM(model, scores=scores)), alone(torch.device("cpu")), False)


def micro():
    draw = np.random.default_rng(0)
    packs = []
    for lengths in LENGTHS:
        size = sum(lengths)
        packs.append(Pack(draw.integers(0, 61, size), draw.random(size) < 0.7, lengths))
    return collate(packs, [0, 0], 20, 0)


def gradients(policy, loss):
    parameters = [p for p in policy.module.parameters() if p.requires_grad]
    return torch.autograd.grad(loss, parameters, allow_unused=True)


@pytest.mark.parametrize("remat", [0, -1])
@pytest.mark.parametrize("is_lora", [False, True])
def test_log_probs_and_scores_of_a_pack_have_the_values_and_gradients_of_documents_alone(is_lora, remat):
    """LoRA alone off: the gradient kept from the forward pass. Recomputed alone: the layers' hooks."""
    policy, packed = build(is_lora, remat), micro()
    lm = policy.module.lm
    last = torch.tensor([8, 19, 30])
    log_probs, scores = policy.log_probs(packed), policy.scores(packed, last)
    assert log_probs.dtype == torch.float64 and len(log_probs) == packed.num_targets
    weights = torch.linspace(-1, 2, len(log_probs), dtype=torch.float64)
    loss = (weights * log_probs).sum().exp() + scores.square().sum()
    found = gradients(policy, loss)
    expected, hidden = [], []
    for row, lengths in enumerate(LENGTHS):
        start = 0
        for length in lengths:
            part = slice(start, start + length)
            ids = torch.from_numpy(packed.tokens_BT[row, part])[None]
            out = lm(input_ids=ids, use_cache=False, output_hidden_states=True)
            labels = torch.from_numpy(packed.labels_BT[row, part])
            rows = (labels != IGNORE).nonzero()[:, 0]
            expected.append(torch.log_softmax(out.logits[0], -1)[rows, labels[rows]])
            hidden.append(out.hidden_states[-1][0])
            start += length
    expected, hidden = torch.cat(expected), torch.cat(hidden)
    wanted_scores = policy.module.scores(hidden[last])[:, 0]
    torch.testing.assert_close(log_probs, expected, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(scores, wanted_scores, rtol=1e-11, atol=1e-12)
    wanted = gradients(policy, (weights * expected).sum().exp() + wanted_scores.square().sum())
    for ours, theirs in zip(found, wanted, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_the_fused_loss_is_minus_the_sum_of_the_log_probs():
    policy, packed = build(False, 0), micro()
    losses = policy.nll(packed)
    assert losses.kl_R is None and float(losses.loss_sum.detach()) == pytest.approx(
        -float(policy.log_probs(packed).detach().sum())
    )
    ours = gradients(policy, losses.loss_sum)
    theirs = gradients(policy, -policy.log_probs(packed).sum())
    for one, other in zip(ours, theirs, strict=True):
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_what_a_teacher_says_and_the_logits_are_those_of_the_log_probs():
    policy, packed = build(False, 0), micro()
    with policy.evaluating():
        ids, top = policy.top(packed, 61)
        logits = policy.logits(packed)
        some = policy.logits(packed, torch.tensor([3, 21]))
    rows = np.flatnonzero(packed.labels_BT.reshape(-1) != IGNORE)
    torch.testing.assert_close(logits[[3, 21]], some)
    by_id = torch.zeros(len(rows), 61).scatter_(1, ids.long(), top)
    torch.testing.assert_close(by_id, torch.log_softmax(logits[rows], -1).float(), rtol=1e-5, atol=1e-6)


def test_scores_without_a_score_head_are_a_sentence():
    policy = build(False, 0)
    policy.module.scores = None
    with pytest.raises(ModelError, match="must have a score head"):
        policy.scores(micro(), torch.tensor([0]))
