"""Routers in float32 within bf16 on a GPU: of real widths they choose what exact arithmetic chooses."""

from __future__ import annotations

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

NUM_TOKENS, HIDDEN, EXPERTS, CHOSEN = 8192, 2048, 128, 8


def router() -> Any:
    """Return the router of Qwen3-30B-A3B with random weights."""
    from transformers import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

    config = Qwen3MoeConfig(
        hidden_size=HIDDEN, num_experts=EXPERTS, num_experts_per_tok=CHOSEN, norm_topk_prob=True
    )
    found: Any = Qwen3MoeTopKRouter(config)
    torch.manual_seed(0)
    torch.nn.init.normal_(found.weight, 0, 0.02)
    return found.to("cuda", torch.bfloat16)


def chosen(output: Any) -> Any:
    """Return what each token goes to, in the order of the experts."""
    return output[-1].sort(-1).values


def timed(module: Any, given: Any) -> float:
    """Return the milliseconds of a forward and a backward pass."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for warm in (True, False):
        begin.record()
        for _ in range(10):
            module(given)[1].float().sum().backward()
        end.record()
        torch.cuda.synchronize()
        if not warm:
            return float(begin.elapsed_time(end)) / 10
    return 0.0


def test_a_router_in_float32_chooses_as_exact_arithmetic_does() -> None:
    """Most tokens of a batch have some expert near the edge; in bf16 many of them go elsewhere."""
    from trainer.model.exact_routers import make_exact

    own = router()
    given = torch.randn(NUM_TOKENS, HIDDEN, device="cuda", dtype=torch.bfloat16)
    meant = chosen(copy.deepcopy(own).double()(given.double()))
    exact = copy.deepcopy(own)
    make_exact(exact)
    wrong, left = ((chosen(one(given)) != meant).any(-1).float().mean().item() for one in (own, exact))
    print(f"tokens that go to another expert: {wrong:.2%} in bf16, {left:.3%} in float32")
    assert wrong > 0.01 and left < 1e-3
    assert [part.dtype for part in exact(given)] == [part.dtype for part in own(given)]
    given.requires_grad_()
    print(
        f"forward and backward: {timed(own, given):.3f} ms in bf16, {timed(exact, given):.3f} ms in float32"
    )
    exact.weight.grad = None
    exact(given)[1].float().square().sum().backward()
    whole = copy.deepcopy(own).float()
    whole.weight.grad = None
    whole(given.detach().float())[1].square().sum().backward()
    apart = (exact.weight.grad.float() - whole.weight.grad).norm() / whole.weight.grad.norm()
    assert float(apart) < 2**-7
