"""The loss head against torch's own cross-entropy: values and every gradient."""

import pytest
import torch
from torch import nn

from trainer.errors import ModelError
from trainer.model.causal import CausalLM
from trainer.model.head.ask import Logits
from trainer.model.head.head import LossHead, install_loss_head
from trainer.model.head.nll import ChunkedCrossEntropy, Nll

N, H, V = 37, 16, 50


def inputs(dtype=torch.float32, bias=True, num_ignored=9):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, H, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(V, H, generator=generator).to(dtype).requires_grad_()
    bias_V = torch.randn(V, generator=generator).to(dtype).requires_grad_() if bias else None
    labels = torch.randint(0, V, (N,), generator=generator)
    labels[torch.randperm(N, generator=generator)[:num_ignored]] = -100
    return hidden, weight, bias_V, labels


def by_torch(hidden, weight, bias, labels, scale):
    logits = nn.functional.linear(hidden, weight, bias).float()
    nll = nn.functional.cross_entropy(logits, labels, reduction="none", ignore_index=-100)
    (nll.sum() * scale).backward()
    return nll.detach()


def gradients(*tensors):
    grads = [t.grad.clone() for t in tensors if t is not None]
    for tensor in tensors:
        if tensor is not None:
            tensor.grad = None
    return grads


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("chunk", [1, 5, 12, 36, 37, 38, 4096])
def test_loss_and_all_gradients_equal_torch_for_every_chunk_size(chunk, bias):
    """A failure at sizes below 37 only: chunks are added up wrongly. Everywhere: the softmax gradient."""
    hidden, weight, bias_V, labels = inputs(bias=bias)
    expected_nll = by_torch(hidden, weight, bias_V, labels, 0.3)
    expected = gradients(hidden, weight, bias_V)
    loss, nll = ChunkedCrossEntropy.apply(hidden, weight, bias_V, labels, chunk)
    (loss * 0.3).backward()
    torch.testing.assert_close(nll, expected_nll, rtol=1e-6, atol=1e-6)
    assert float(loss.detach()) == pytest.approx(float(expected_nll.sum()), rel=1e-6)
    for actual, wanted in zip(gradients(hidden, weight, bias_V), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("chunk", [5, 4096])
def test_bf16_stays_within_its_rounding(chunk):
    """A failure with small chunks only: the weight gradient is added up in bf16 instead of fp32."""
    hidden, weight, bias_V, labels = inputs(torch.bfloat16)
    exact = [t.detach().double().requires_grad_() for t in (hidden, weight, bias_V)]
    logits = nn.functional.linear(*exact)
    nn.functional.cross_entropy(logits, labels, reduction="sum", ignore_index=-100).backward()
    loss, nll = ChunkedCrossEntropy.apply(hidden, weight, bias_V, labels, chunk)
    loss.backward()
    assert loss.dtype == nll.dtype == torch.float32
    for actual, wanted in zip((hidden, weight, bias_V), exact, strict=True):
        assert actual.grad.dtype == torch.bfloat16
        error = (actual.grad.double() - wanted.grad).abs().max() / wanted.grad.abs().max()
        assert error < 3 * 2.0**-8


def test_ignored_labels_have_no_loss_and_no_gradient():
    hidden, weight, bias_V, labels = inputs()
    labels[:] = -100
    loss, nll = ChunkedCrossEntropy.apply(hidden, weight, bias_V, labels, 8)
    loss.backward()
    assert float(loss.detach()) == 0.0 and not nll.any()
    for grad in gradients(hidden, weight, bias_V):
        assert not grad.any()


def test_a_frozen_weight_gets_no_gradient_and_hidden_the_same():
    hidden, weight, _, labels = inputs(bias=False)
    by_torch(hidden, weight, None, labels, 1.0)
    expected = gradients(hidden, weight)[0]
    frozen = weight.detach()
    loss, _ = ChunkedCrossEntropy.apply(hidden, frozen, None, labels, 7)
    loss.backward()
    assert frozen.grad is None
    torch.testing.assert_close(hidden.grad, expected, rtol=2e-5, atol=2e-6)


def test_frozen_hidden_states_leave_the_gradient_of_the_weight():
    hidden, weight, _, labels = inputs(bias=False)
    by_torch(hidden, weight, None, labels, 1.0)
    expected = gradients(hidden, weight)[1]
    loss, _ = ChunkedCrossEntropy.apply(hidden.detach(), weight, None, labels, 7)
    loss.backward()
    torch.testing.assert_close(weight.grad, expected, rtol=2e-5, atol=2e-6)


def test_under_no_grad_the_losses_are_the_same():
    hidden, weight, bias_V, labels = inputs()
    _, with_grad = ChunkedCrossEntropy.apply(hidden, weight, bias_V, labels, 6)
    with torch.no_grad():
        _, without = ChunkedCrossEntropy.apply(hidden, weight, bias_V, labels, 6)
    assert torch.equal(with_grad, without)


def test_the_gradient_agrees_with_finite_differences():
    """Independent of torch's cross-entropy. The head works in fp32 inside, so the step is coarse."""
    hidden, weight, _, labels = inputs(bias=False)
    loss, _ = ChunkedCrossEntropy.apply(hidden, weight, None, labels, 10)
    loss.backward()

    def exact(h, w):
        logits = h.double() @ w.double().T
        picked = logits.log_softmax(-1).gather(1, labels.clamp(min=0)[:, None])[:, 0]
        return -(picked * (labels != -100)).sum()

    direction_h, direction_w = torch.randn_like(hidden), torch.randn_like(weight)
    step = 1e-5
    h, w = hidden.detach().double(), weight.detach().double()
    up = exact(h + step * direction_h, w + step * direction_w)
    down = exact(h - step * direction_h, w - step * direction_w)
    slope = float(up - down) / (2 * step)
    predicted = float((hidden.grad * direction_h).sum() + (weight.grad * direction_w).sum())
    assert predicted == pytest.approx(slope, rel=1e-4)


class Same(nn.Module):
    def forward(self, use_cache, input_ids):
        return type("Output", (), {"last_hidden_state": input_ids})()


class Model(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.head, self.base_model = head, Same()

    def get_output_embeddings(self):
        return self.head


def test_an_installed_head_keeps_its_parameters_and_gives_logits_or_losses():
    linear = nn.Linear(H, V)
    weight = linear.weight
    install_loss_head(Model(linear), 8)
    assert type(linear) is LossHead and linear.weight is weight
    hidden = torch.randn(2, 5, H)
    objective = CausalLM(Model(linear))
    logits = objective(Logits(), input_ids=hidden)
    assert logits.shape == (2, 5, V)
    labels = torch.randint(0, V, (2, 5))
    loss, nll = objective(Nll(labels.reshape(-1)), input_ids=hidden)
    expected = nn.functional.cross_entropy(logits.reshape(-1, V), labels.reshape(-1), reduction="none")
    torch.testing.assert_close(nll, expected)
    torch.testing.assert_close(loss, expected.sum())


def test_a_head_that_is_no_linear_layer_is_refused():
    with pytest.raises(ModelError, match=r"is Sequential instead\. Name another model\.path"):
        install_loss_head(Model(nn.Sequential()), 8)


def test_the_scale_of_the_loss_is_not_rounded_to_bf16():
    """Rounding errors of elements average out; this one is the same for all and moves the gradient norm."""
    scale = 1 / 1003
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(256, 64, generator=generator).bfloat16().requires_grad_()
    weight = (0.2 * torch.randn(300, 64, generator=generator)).bfloat16().requires_grad_()
    labels = torch.randint(0, 300, (256,), generator=generator)
    exact = [t.detach().double().requires_grad_() for t in (hidden, weight)]
    logits = nn.functional.linear(*exact)
    (nn.functional.cross_entropy(logits, labels, reduction="sum") * scale).backward()
    loss, _ = ChunkedCrossEntropy.apply(hidden, weight, None, labels, 64)
    (loss * scale).backward()
    for actual, wanted in zip((hidden, weight), exact, strict=True):
        along = float((actual.grad.double() * wanted.grad).sum() / wanted.grad.square().sum())
        assert abs(along - 1) < 1e-3


def test_a_second_backward_is_an_error_and_not_a_wrong_gradient():
    """Gradients are scaled in place to save memory, so the graph can be used once."""
    hidden, weight, _, labels = inputs(bias=False)
    loss, _ = ChunkedCrossEntropy.apply(hidden, weight, None, labels, 8)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
