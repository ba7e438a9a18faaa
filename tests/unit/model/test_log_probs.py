"""Differentiable log-probabilities in chunks, against torch's own: values, every gradient, and what exists at once."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.model.head.ask import Output
from trainer.model.head.log_probs import LogProbs

N, H, V = 41, 16, 53


def inputs(dtype, bias, is_frozen):
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(2, N, H, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(V, H, generator=generator, dtype=torch.float64).to(dtype)
    bias_V = torch.randn(V, generator=generator, dtype=torch.float64).to(dtype) if bias else None
    for tensor in (weight, bias_V):
        if tensor is not None:
            tensor.requires_grad_(not is_frozen)
    rows = torch.randperm(2 * N, generator=generator)[:37].sort().values
    return hidden, weight, bias_V, rows, torch.randint(0, V, (37,), generator=generator)


def preference(log_probs):
    """Return a loss of two sequences: the weight of every token hangs on all of them."""
    return -nn.functional.logsigmoid(0.3 * (log_probs[:20].sum() - log_probs[20:].mean()))


def gradients(loss, *tensors):
    wanted = [tensor for tensor in tensors if tensor is not None and tensor.requires_grad]
    return torch.autograd.grad(loss, wanted)


@pytest.mark.parametrize("is_frozen", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("chunk", [1, 8, 36, 37, 4096])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_values_and_all_gradients_equal_torch(dtype, tolerance, chunk, bias, is_frozen):
    """Frozen alone off: the gradients kept from the forward pass. Small chunks alone: how they are added up."""
    hidden, weight, bias_V, rows, targets = inputs(dtype, bias, is_frozen)
    logits = nn.functional.linear(hidden.reshape(-1, H)[rows], weight, bias_V)
    expected = torch.log_softmax(logits, -1)[torch.arange(37), targets]
    found = LogProbs(rows, targets).answer(hidden, Output(weight, bias_V, chunk))
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    pairs = zip(
        gradients(preference(found), hidden, weight, bias_V),
        gradients(preference(expected), hidden, weight, bias_V),
        strict=True,
    )
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=10 * tolerance, atol=tolerance)


@pytest.mark.parametrize("is_frozen", [True, False])
def test_bf16_stays_within_its_rounding(is_frozen):
    hidden, weight, _, rows, targets = inputs(torch.bfloat16, False, is_frozen)
    exact = [tensor.detach().double().requires_grad_(tensor.requires_grad) for tensor in (hidden, weight)]
    logits = exact[0].reshape(-1, H)[rows] @ exact[1].t()
    expected = torch.log_softmax(logits, -1)[torch.arange(37), targets]
    found = LogProbs(rows, targets).answer(hidden, Output(weight, None, 5))
    assert found.dtype == torch.float32
    pairs = zip(
        gradients(preference(found), hidden, weight), gradients(preference(expected), *exact), strict=True
    )
    for ours, theirs in pairs:
        assert ours.dtype == torch.bfloat16
        assert (ours.double() - theirs).abs().max() / theirs.abs().max() < 3 * 2.0**-8


class Largest(TorchDispatchMode):
    """Remembers the most rows over the vocabulary that any tensor had."""

    def __init__(self):
        super().__init__()
        self.rows = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, torch.Tensor) and tensor.ndim and tensor.shape[-1] == V:
                self.rows = max(self.rows, tensor.numel() // V)
        return made


@pytest.mark.parametrize("is_frozen", [True, False])
def test_no_more_logits_exist_at_once_than_a_chunk_in_both_passes(is_frozen):
    hidden, weight, _, rows, targets = inputs(torch.float32, False, is_frozen)
    with Largest() as largest:
        found = LogProbs(rows, targets).answer(hidden, Output(weight, None, 20))
        loss = preference(found)
        loss.backward()
    assert hidden.grad is not None and largest.rows == 20
    with Largest() as largest:
        torch.log_softmax(hidden @ weight.t(), -1).sum().backward()
    assert largest.rows == 2 * N, "the count sees whole logits where they are"


def test_a_pack_without_a_supervised_token_has_no_log_probs_and_a_gradient_of_zero():
    hidden, weight, _, _, _ = inputs(torch.float32, False, False)
    nothing = torch.zeros(0, dtype=torch.long)
    found = LogProbs(nothing, nothing).answer(hidden, Output(weight, None, 8))
    found.sum().backward()
    assert found.shape == (0,) and not hidden.grad.any() and not weight.grad.any()
