"""Cross-entropy plus KL to the base on a GPU: the Triton kernel against eager torch in float32."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("vocab_size", [257, 49152, 128256])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_kernel_computes_what_eager_torch_does(vocab_size: int, dtype: str) -> None:
    """A failure points at the kernel: at its barriers when it comes and goes."""
    from tests.helpers.divergence import plain_divergence, top_tokens
    from trainer.model.head.nll import _softmax_step

    torch.manual_seed(0)
    base_logits = 3 * torch.randn(300, vocab_size, device="cuda")
    logits = (base_logits + torch.randn_like(base_logits)).to(getattr(torch, dtype))
    rows = list(range(3, 300, 4))
    base = top_tokens(base_logits[rows], rows, 64, 2.5, "cuda")
    labels = torch.randint(0, vocab_size, (300,), device="cuda")
    labels[::4] = -100
    labels[rows[:30]] = base.ids_RK[:30, 3].long()
    exact = logits.float().requires_grad_()
    expected_nll = torch.nn.functional.cross_entropy(exact, labels, ignore_index=-100, reduction="none")
    expected_kl = plain_divergence(exact, base)
    (expected_nll.sum() + base.beta * expected_kl.sum()).backward()
    for _ in range(5):
        nll, grad, kl = _softmax_step(logits.clone(), labels, base, True)
        torch.testing.assert_close(nll, expected_nll, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(kl, expected_kl, rtol=1e-4, atol=1e-5)
        tolerance = 2.0**-7 if dtype == "bfloat16" else 1e-4
        torch.testing.assert_close(grad.float(), exact.grad, rtol=tolerance, atol=1e-6)
        assert not grad[::4].any()


def test_a_row_without_a_base_has_the_bits_it_has_alone() -> None:
    """A failure means that the rows of a base are not skipped, or that others are."""
    from tests.helpers.divergence import top_tokens
    from trainer.model.head.nll import _softmax_step

    torch.manual_seed(0)
    logits = torch.randn(64, 49152, device="cuda", dtype=torch.bfloat16)
    labels = torch.randint(0, 49152, (64,), device="cuda")
    rows = list(range(0, 64, 3))
    base = top_tokens(torch.randn(len(rows), 49152, device="cuda"), rows, 64, 1.0, "cuda")
    alone_nll, alone, _ = _softmax_step(logits.clone(), labels, None, True)
    nll, grad, _ = _softmax_step(logits.clone(), labels, base, True)
    others = [row for row in range(64) if row not in rows]
    assert torch.equal(alone[others], grad[others]) and torch.equal(alone_nll[others], nll[others])
    assert not torch.equal(alone[rows], grad[rows])
