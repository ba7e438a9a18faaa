"""The KL to the base inside the loss head: its value, its gradient, and what it leaves alone."""

import itertools
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from tests.helpers.divergence import plain_divergence, top_tokens
from tests.helpers.wait import LIMIT_S
from tests.unit.model.test_head import Model, gradients
from trainer.model.causal import CausalLM
from trainer.model.head.ask import Logits
from trainer.model.head.comparison import LEAST_MASS
from trainer.model.head.divergence import divergence, divergence_step
from trainer.model.head.head import install_loss_head
from trainer.model.head.nll import ChunkedCrossEntropy
from trainer.model.head.top import Top

N, H, V, K = 23, 6, 40, 5
ROWS = [1, 2, 7, 8, 9, 15, 22]
BETA = 1.7


def inputs(dtype=torch.float64, spread=1.0):
    """Hidden states, weight, bias and labels; the base is another model."""
    generator = torch.Generator().manual_seed(0)

    def made(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64) * spread

    tensors = [t.to(dtype).requires_grad_() for t in (made(N, H), made(V, H), made(V))]
    labels = torch.randint(0, V, (N,), generator=generator)
    labels[[0, 5, 14]] = -100
    base = top_tokens(made(len(ROWS), V) * 2, ROWS, K, BETA)
    labels[7] = base.ids_RK[2, 1]  # a label among the base's tokens, and most outside them
    return *tensors, labels, base


def by_autograd(hidden, weight, bias, labels, base, scale=1.0):
    logits = nn.functional.linear(hidden, weight, bias)
    nll = nn.functional.cross_entropy(logits, labels, reduction="none", ignore_index=-100)
    kl = plain_divergence(logits, base)
    ((nll.sum() + base.beta * kl.sum()) * scale).backward()
    return nll.detach(), kl.detach()


@pytest.mark.parametrize("chunk", [4, 8, 23, 100])
def test_the_gradient_agrees_with_finite_differences_in_float64(chunk):
    """A failure points at the formula in divergence_step. At small chunks only: at TopTokens.within."""
    hidden, weight, bias, labels, base = inputs()

    class Anew(torch.autograd.Function):
        """gradcheck goes back through a graph many times, but the head scales its gradients in place."""

        @staticmethod
        def forward(ctx, *tensors):
            ctx.save_for_backward(*tensors)
            return ChunkedCrossEntropy.apply(*tensors, labels, chunk, base)[0]

        @staticmethod
        def backward(ctx, grad):
            fresh = [t.detach().requires_grad_() for t in ctx.saved_tensors]
            with torch.enable_grad():
                loss, _, _ = ChunkedCrossEntropy.apply(*fresh, labels, chunk, base)
            return torch.autograd.grad(loss, fresh, grad)

    assert torch.autograd.gradcheck(Anew.apply, (hidden, weight, bias), eps=1e-6, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("chunk", [1, 4, 7, 22, 23, 100])
def test_value_and_gradients_equal_plain_autograd_for_every_chunk_size(chunk):
    hidden, weight, bias, labels, base = inputs()
    expected_nll, expected_kl = by_autograd(hidden, weight, bias, labels, base, 0.3)
    expected = gradients(hidden, weight, bias)
    loss, nll, kl = ChunkedCrossEntropy.apply(hidden, weight, bias, labels, chunk, base)
    (loss * 0.3).backward()
    torch.testing.assert_close(nll, expected_nll, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(kl, expected_kl, rtol=1e-10, atol=1e-12)
    assert kl.min() > 0.1
    torch.testing.assert_close(loss.detach(), nll.sum() + BETA * kl.sum())
    for actual, wanted in zip(gradients(hidden, weight, bias), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3 * 2.0**-8)])
def test_lower_precisions_stay_within_their_rounding(dtype, tolerance):
    hidden, weight, bias, labels, base = inputs(dtype)
    exact = [t.detach().double().requires_grad_() for t in (hidden, weight, bias)]
    _, expected_kl = by_autograd(*exact, labels, base)
    loss, nll, kl = ChunkedCrossEntropy.apply(hidden, weight, bias, labels, 8, base)
    loss.backward()
    assert loss.dtype == nll.dtype == kl.dtype == torch.float32
    assert (kl - expected_kl).abs().max() / expected_kl.max() < tolerance
    for actual, wanted in zip((hidden, weight, bias), exact, strict=True):
        assert actual.grad.dtype == dtype
        assert (actual.grad.double() - wanted.grad).abs().max() / wanted.grad.abs().max() < tolerance


def test_a_base_leaves_the_cross_entropy_and_the_gradients_of_other_rows_bit_for_bit():
    """The reported cross-entropy must not depend on beta, nor a target row on the replay beside it."""
    hidden, weight, bias, labels, base = inputs(torch.float32)
    loss, nll = ChunkedCrossEntropy.apply(hidden, weight, bias, labels, 8)
    loss.backward()
    alone = hidden.grad.clone()
    hidden.grad = None
    loss, with_base, _ = ChunkedCrossEntropy.apply(hidden, weight, bias, labels, 8, base)
    loss.backward()
    assert torch.equal(nll, with_base)
    others = [row for row in range(N) if row not in ROWS]
    assert torch.equal(alone[others], hidden.grad[others])
    assert (alone[ROWS] - hidden.grad[ROWS]).abs().amax(1).min() > 1e-3


def test_a_model_that_is_its_base_has_no_divergence_and_no_gradient():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(9, V, generator=generator) * 3
    kl, grad = divergence_step(logits, top_tokens(logits, list(range(9)), K, 1.0), True)
    assert kl.abs().max() < 1e-6 and grad.abs().max() < 1e-6


def test_it_is_a_lower_bound_that_is_met_when_all_tokens_are_kept():
    generator = torch.Generator().manual_seed(1)
    base_logits, logits = (torch.randn(9, V, generator=generator, dtype=torch.float64) for _ in range(2))
    p, q = base_logits.log_softmax(-1), logits.log_softmax(-1)
    whole = (p.exp() * (p - q)).sum(-1)
    bounds = [
        divergence_step(logits, top_tokens(base_logits, list(range(9)), k, 1.0), False)[0]
        for k in (1, 5, 20, V)
    ]
    assert all((less <= more + 1e-12).all() for less, more in itertools.pairwise(bounds))
    torch.testing.assert_close(bounds[-1], whole, rtol=0, atol=1e-7)  # LEAST_MASS on both sides
    assert (bounds[0] < whole).all()


@pytest.mark.parametrize("gap", [15.0, 30.0, 200.0])
def test_a_model_with_hardly_any_mass_outside_the_top_keeps_an_exact_and_finite_gradient(gap):
    """1 minus the mass of the top tokens is rounding there. At gap 30 and above LEAST_MASS holds the rest up."""
    generator = torch.Generator().manual_seed(2)
    base = top_tokens(torch.randn(4, V, generator=generator, dtype=torch.float64), [0, 1, 2, 3], K, 1.0)
    logits = torch.randn(4, V, generator=generator, dtype=torch.float64)
    logits.scatter_add_(1, base.ids_RK.long(), torch.full((4, K), gap, dtype=torch.float64))
    exact = logits.clone().requires_grad_()
    expected = plain_divergence(exact, base)
    expected.sum().backward()
    rest = logits.softmax(-1).scatter(1, base.ids_RK.long(), 0.0).sum(-1)
    assert (rest < LEAST_MASS).all() == (gap > 15)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        kl, grad = divergence_step(logits.to(dtype), base, True)
        torch.testing.assert_close(kl.double(), expected.detach(), rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(grad.double(), exact.grad, rtol=tolerance, atol=tolerance)


def test_the_formula_of_the_report_is_that_of_the_loss():
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(9, V, generator=generator, dtype=torch.float64)
    base = top_tokens(torch.randn(9, V, generator=generator, dtype=torch.float64), list(range(9)), K, 1.0)
    reported = divergence(base.log_probs_RK, logits.log_softmax(-1).gather(1, base.ids_RK.long()))
    torch.testing.assert_close(divergence_step(logits, base, False)[0], reported, rtol=1e-12, atol=1e-12)


def test_without_gradients_the_divergence_is_the_same():
    hidden, weight, bias, labels, base = inputs(torch.float32)
    _, _, with_grad = ChunkedCrossEntropy.apply(hidden, weight, bias, labels, 6, base)
    with torch.no_grad():
        _, _, without = ChunkedCrossEntropy.apply(hidden, weight, bias, labels, 6, base)
    assert torch.equal(with_grad, without)


def test_the_model_gives_the_top_tokens_of_its_supervised_positions():
    linear = nn.Linear(H, V)
    install_loss_head(Model(linear), 8)
    objective = CausalLM(Model(linear))
    hidden = torch.randn(2, 5, H)
    labels = torch.full((2, 5), -100)
    labels[0, 3], labels[1, 0], labels[1, 4] = 3, 1, 2
    ids, log_probs = objective(Top(labels.reshape(-1), K), input_ids=hidden)
    assert (ids.dtype, log_probs.dtype) == (torch.int32, torch.float32)
    expected = objective(Logits(), input_ids=hidden).log_softmax(-1).reshape(-1, V)[[3, 5, 9]].topk(K)
    assert torch.equal(ids.long(), expected.indices)
    torch.testing.assert_close(log_probs, expected.values)
    everything, _ = objective(Top(labels.reshape(-1), 10 * V), input_ids=hidden)
    assert everything.shape == (3, V)
    nothing, _ = objective(Top(torch.full((10,), -100), K), input_ids=hidden)
    assert nothing.shape == (0, K)


def test_the_triton_kernel_computes_what_eager_torch_does():
    """Interpreted on the CPU, in a process of its own: triton reads the switch when a kernel is defined."""
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("same") == 5


INTERPRETED = """
import torch
from tests.helpers.divergence import top_tokens
from trainer.model.head.fused_divergence import fused_divergence_step
from trainer.model.head.nll import _softmax_step

torch.manual_seed(0)
f32, bf16 = torch.float32, torch.bfloat16
for V, K, dtype in ((50, 8, f32), (300, 64, f32), (20000, 64, f32), (300, 64, bf16), (8, 8, f32)):
    base_logits = torch.randn(9, V) * 3
    logits = (base_logits + torch.randn(9, V)).to(dtype)
    rows = [0, 3, 4, 8]
    base = top_tokens(base_logits[rows], rows, K, 2.5)
    labels = torch.randint(0, V, (9,))
    labels[[2, 7]] = -100
    labels[3] = base.ids_RK[1, 2]
    for needs_grad in (False, True):
        wanted, grad, kl = _softmax_step(logits.clone(), labels, base, needs_grad)
        nll, fused, fused_kl = fused_divergence_step(logits.clone(), labels, base, needs_grad)
        torch.testing.assert_close(nll, wanted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(fused_kl, kl, rtol=1e-5, atol=1e-6)
    close = (2**-7, 2**-8) if dtype is bf16 else (1e-5, 1e-6)
    torch.testing.assert_close(fused, grad, rtol=close[0], atol=close[1])
    assert not fused[[2, 7]].any()
    print("same")
"""
