"""Divergences from a teacher's top tokens and the rest: formulas by hand in float64, and what is seen of logits."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from trainer.config.distill import DivergenceKind
from trainer.model.head.ask import Output
from trainer.model.head.bend import NO_BEND
from trainer.model.head.comparison import Comparison
from trainer.model.head.divergence import TopTokens, divergence_step
from trainer.model.head.nll import ChunkedCrossEntropy
from trainer.model.head.top import Top

R, V, K, H = 6, 30, 4, 5
KINDS = [
    Comparison(DivergenceKind.forward),
    Comparison(DivergenceKind.reverse),
    Comparison(DivergenceKind.jsd, 0.3),
    Comparison(DivergenceKind.reverse, temperature=2.5),
    Comparison(DivergenceKind.jsd, 0.8, temperature=0.7, num_ids=21),
    Comparison(DivergenceKind.forward, temperature=3.0, num_ids=21),
]


def made(*shape, seed=0, spread=2.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * spread


def top_of(logits, how, num_top=K, rows=None, beta=1.0):
    """Return what a teacher with these logits says, in plain torch."""
    seen = (logits if how.num_ids is None else logits[:, : how.num_ids]) / how.temperature
    log_probs = seen.log_softmax(-1)
    found, ids = log_probs.topk(min(num_top, seen.shape[1]), -1)
    rest = (1 - found.exp().sum(-1)).clamp(min=0).log()
    rows = torch.arange(len(logits)) if rows is None else torch.tensor(rows)
    return TopTokens(rows, rows.numpy(), ids, found, beta, how, rest)


def by_hand(logits, teacher_logits, how, num_top=K):
    """Return the divergence of each row: probabilities of the K and the rest, and the formula with sums and logs."""
    size = logits.shape[1] if how.num_ids is None else how.num_ids
    p, q = (
        torch.exp(x[:, :size] / how.temperature)
        / torch.exp(x[:, :size] / how.temperature).sum(-1, keepdim=True)
        for x in (teacher_logits, logits)
    )
    ids = p.topk(min(num_top, size), -1).indices
    outside = torch.ones_like(p, dtype=torch.bool).scatter(1, ids, False)

    def buckets(x):
        rest = torch.where(outside, x, 0.0).sum(-1, keepdim=True)
        return torch.cat([x.gather(1, ids), rest], -1) if num_top < size else x.gather(1, ids)

    p, q = buckets(p), buckets(q)
    if how.divergence is DivergenceKind.forward:
        return (p * (p / q).log()).sum(-1)
    if how.divergence is DivergenceKind.reverse:
        return (q * (q / p).log()).sum(-1)
    m = how.share * p + (1 - how.share) * q
    return how.share * (p * (p / m).log()).sum(-1) + (1 - how.share) * (q * (q / m).log()).sum(-1)


@pytest.mark.parametrize("num_top", [1, K, V])
@pytest.mark.parametrize(
    "how", KINDS, ids=lambda how: f"{how.divergence.value}-{how.temperature}-{how.num_ids}"
)
def test_value_and_gradient_are_those_of_the_formula_in_float64(how, num_top):
    """At K = V it is that of whole vocabularies. The gradient alone: g, or the way back through what is seen."""
    logits, teacher = made(R, V).requires_grad_(), made(R, V, seed=1)
    expected = by_hand(logits, teacher, how, num_top)
    (gradient,) = torch.autograd.grad(expected.sum(), logits)
    found, grad = divergence_step(logits.detach(), top_of(teacher, how, num_top), needs_grad=True)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(grad, gradient, rtol=1e-7, atol=1e-9)
    assert divergence_step(logits.detach(), top_of(teacher, how, num_top), needs_grad=False)[1] is None


def test_two_outcomes_worked_out_on_paper():
    """Teacher 3/4 and 1/4, student 1/2 and 1/2, one token kept."""
    logits = torch.zeros(1, 2, dtype=torch.float64)
    teacher = torch.tensor([[math.log(3.0), 0.0]], dtype=torch.float64)
    wanted = {
        Comparison(DivergenceKind.forward): 0.75 * math.log(1.5) + 0.25 * math.log(0.5),
        Comparison(DivergenceKind.reverse): 0.5 * math.log(2 / 3) + 0.5 * math.log(2.0),
        # The mixture is 5/8 and 3/8.
        Comparison(DivergenceKind.jsd): 0.5 * (0.75 * math.log(1.2) + 0.25 * math.log(2 / 3))
        + 0.5 * (0.5 * math.log(0.8) + 0.5 * math.log(4 / 3)),
    }
    for how, value in wanted.items():
        (found,) = divergence_step(logits, top_of(teacher, how, 1), needs_grad=False)[0].tolist()
        assert found == pytest.approx(value, rel=1e-12), how.divergence


@pytest.mark.parametrize("how", KINDS)
@pytest.mark.parametrize("num_top", [K, V])
def test_a_teacher_that_is_the_student_is_at_no_distance_and_pulls_nowhere(how, num_top):
    logits = made(R, V)
    found, grad = divergence_step(logits, top_of(logits, how, num_top), needs_grad=True)
    assert found.abs().max() < 1e-12 and grad.abs().max() < 1e-12


def test_numbers_rounded_to_half_precision_still_sum_up_to_one():
    """Unnormalised, a student that is its teacher would be at a distance of up to 1e-3, of either sign."""
    logits = made(200, V, seed=3)
    how = Comparison(DivergenceKind.forward)
    says = top_of(logits, how)
    says = dataclasses.replace(says, log_probs_RK=says.log_probs_RK.half(), log_rest_R=says.log_rest_R.half())
    found, _ = divergence_step(logits, says, needs_grad=False)
    assert found.min() > -1e-12 and found.max() < 1e-6


@pytest.mark.parametrize("chunk", [1, 4, 7, 100])
def test_the_head_weighs_both_parts_of_a_row_and_leaves_the_others_alone(chunk):
    """The sum, and gradients of hidden states, weight and bias, of every chunking, against plain autograd."""
    num, rows, beta, how = 9, [0, 1, 4, 7], 1.7, Comparison(DivergenceKind.jsd, 0.4, 2.0, None, 0.25)
    teacher = made(len(rows), V, seed=5)
    labels = torch.arange(num) * 3 % V
    labels[5] = -100
    weights = torch.linspace(0.5, 2.0, num, dtype=torch.float64)
    base = top_of(teacher, how, rows=rows, beta=beta)
    results = []
    for is_ours in (True, False):
        hidden, weight, bias = (
            made(*s, seed=7, spread=0.7).requires_grad_() for s in ((num, H), (V, H), (V,))
        )
        if is_ours:
            args = (labels, chunk, base)
            loss, nll, found = ChunkedCrossEntropy.apply(hidden, weight, bias, *args, NO_BEND, weights)
        else:
            logits = nn.functional.linear(hidden, weight, bias)
            nll = nn.functional.cross_entropy(logits, labels, reduction="none", ignore_index=-100)
            found = by_hand(logits[rows], teacher, how)
            counts = weights.clone()
            counts[rows] *= 0.25
            loss = (counts * nll).sum() + beta * (weights[rows] * found).sum()
        (0.3 * loss).backward()
        results.append([loss, nll, found, hidden.grad, weight.grad, bias.grad])
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-8, atol=1e-10)


def test_top_tokens_are_those_of_what_is_seen_and_the_rest_is_kept_beside_them():
    hidden, weight = made(7, H, spread=1.0), made(V, H, seed=1, spread=1.0)
    how = Comparison(temperature=2.0, num_ids=21)
    labels = torch.tensor([1, -100, 2, 3, 4, -100, 5])
    ids, log_probs = Top(labels, K, how).answer(hidden, Output(weight, None, 4))
    seen = (nn.functional.linear(hidden, weight)[labels != -100][:, :21] / 2).log_softmax(-1)
    expected, places = seen.topk(K, -1)
    assert torch.equal(ids, places.int()) and ids.max() < 21
    torch.testing.assert_close(log_probs[:, :K].double(), expected, rtol=1e-5, atol=1e-6)
    rest = 1 - expected.exp().sum(-1)
    torch.testing.assert_close(log_probs[:, K].double().exp(), rest, rtol=1e-5, atol=1e-6)
    everything = Top(labels, V, how).answer(hidden, Output(weight, None, 4))[1]
    assert everything.shape == (5, 22) and (everything[:, 21] == -math.inf).all()
