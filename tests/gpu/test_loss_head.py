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


@pytest.mark.parametrize("vocab_size", [257, 49152])
@pytest.mark.parametrize(("scale", "cap"), [(0.125, None), (1.0, 30.0), (4.0, 5.0), (-0.5, None)])
@pytest.mark.parametrize("teacher", [False, True])
def test_logits_are_scaled_and_capped_inside_the_kernel(
    vocab_size: int, scale: float, cap: float | None, teacher: bool
) -> None:
    """A failure points at the derivative of tanh in the kernel; a teacher is compared with bent logits too."""
    from trainer.model.head.bend import Bend
    from trainer.model.head.divergence import TopTokens
    from trainer.model.head.nll import _softmax_step

    torch.manual_seed(0)
    logits = 6 * torch.randn(40, vocab_size, device="cuda")
    labels = torch.randint(0, vocab_size, (40,), device="cuda")
    labels[::7] = -100
    base = None
    if teacher:
        rows = torch.tensor([row for row in range(40) if row % 7 and row % 3 == 0])
        says = torch.log_softmax(3 * torch.randn(len(rows), vocab_size, device="cuda"), -1).topk(32)
        base = TopTokens(rows.cuda(), rows.numpy(), says.indices, says.values, 0.7)
    bend = Bend(scale, cap)
    on_cpu = None
    if base is not None:
        on_cpu = TopTokens(rows, rows.numpy(), base.ids_RK.cpu(), base.log_probs_RK.cpu().double(), 0.7)
    wanted = _softmax_step(logits.cpu().double(), labels.cpu(), on_cpu, True, bend)
    found = _softmax_step(logits.clone(), labels, base, True, bend)
    for got, meant in zip(found, wanted, strict=True):
        assert (got is None) == (meant is None)
        if got is not None:
            off = float((got.cpu().double() - meant).norm() / meant.norm())
            assert off < 1e-5, off


@pytest.mark.parametrize("vocab_size", [257, 49152])
@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd"])
def test_a_divergence_without_a_kernel_is_that_of_a_cpu_in_float64(vocab_size: int, kind: str) -> None:
    """A failure points at the rows that are taken at once, or at what the fused softmax overwrites."""
    from trainer.config.distill import DivergenceKind
    from trainer.model.head.comparison import Comparison
    from trainer.model.head.divergence import TopTokens
    from trainer.model.head.nll import _softmax_step

    torch.manual_seed(0)
    logits = 6 * torch.randn(1300, vocab_size, device="cuda")
    labels = torch.randint(0, vocab_size, (1300,), device="cuda")
    labels[::7] = -100
    rows = torch.tensor([row for row in range(1300) if row % 7 and row % 2 == 0])
    how = Comparison(DivergenceKind(kind), 0.3, 2.0, vocab_size - 9, 0.5)
    says = torch.log_softmax(how.seen(3 * torch.randn(len(rows), vocab_size, device="cuda")), -1)
    top = says.topk(32)
    rest = says.scatter(1, top.indices, float("-inf")).logsumexp(-1)
    base = TopTokens(rows.cuda(), rows.numpy(), top.indices, top.values, 0.7, how, rest)
    on_cpu = TopTokens(
        rows, rows.numpy(), top.indices.cpu(), top.values.cpu().double(), 0.7, how, rest.cpu().double()
    )
    wanted = _softmax_step(logits.cpu().double(), labels.cpu(), on_cpu, True)
    found = _softmax_step(logits.clone(), labels, base, True)
    for got, meant in zip(found, wanted, strict=True):
        assert got is not None and meant is not None
        off = float((got.cpu().double() - meant).norm() / meant.norm())
        assert off < 1e-5, off
