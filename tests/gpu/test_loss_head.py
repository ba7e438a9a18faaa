"""The loss head on a GPU against plain cross-entropy in float32."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("vocab_size", [257, 49152, 128256])
@pytest.mark.parametrize("chunk_tokens", [64, 300])
def test_fused_loss_head_equals_float32_cross_entropy(vocab_size: int, chunk_tokens: int) -> None:
    """A failure points at the Triton softmax or at the sum of weight gradients over chunks."""
    from trainer.model.head.nll import ChunkedCrossEntropy

    torch.manual_seed(0)
    hidden = torch.randn(300, 256, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = (0.05 * torch.randn(vocab_size, 256, device="cuda", dtype=torch.bfloat16)).requires_grad_()
    labels = torch.randint(0, vocab_size, (300,), device="cuda")
    labels[::7] = -100
    loss, nll = ChunkedCrossEntropy.apply(hidden, weight, None, labels, chunk_tokens)
    (loss / 100).backward()
    plain_hidden, plain_weight = (t.detach().float().requires_grad_() for t in (hidden, weight))
    expected = torch.nn.functional.cross_entropy(
        plain_hidden @ plain_weight.t(), labels, ignore_index=-100, reduction="none"
    )
    (expected.sum() / 100).backward()
    assert torch.allclose(nll, expected, rtol=2**-8, atol=2**-6)
    for actual, wanted in ((hidden.grad, plain_hidden.grad), (weight.grad, plain_weight.grad)):
        error = (actual.float() - wanted).norm() / wanted.norm()
        assert error < 2**-7
