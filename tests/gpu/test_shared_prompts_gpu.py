"""Answers that share a prompt on a GPU: flash attention with more keys than queries, and whole documents and SDPA."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.helpers.shared import packs_of

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

VOCABULARY = 512
SEQ_LEN = 1024
WINDOW = 64
UNITS = [(200, [40, 63]), (90, [128]), (131, [30, 17, 1]), (1, [20, 9])]
"""Prompts longer and shorter than the window, a document alone, a group of three, and a prompt of one token."""
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "max_position_embeddings": 1024,
    "initializer_range": 0.1,
}
BOTH = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, heads of 64": ("llama", {"head_dim": 64}),
    "llama, heads of 128": ("llama", {"head_dim": 128}),
    "qwen3": ("qwen3", {"head_dim": 64}),
    "mistral, a window": ("mistral", {"head_dim": 64, "sliding_window": WINDOW}),
    "gemma3, windows": ("gemma3_text", {**BOTH, "head_dim": 64, "query_pre_attn_scalar": 64}),
}
BF16_ROUNDING = 2.0**-8
"""Of a sum of log-probabilities. Of a gradient's norm four times that: it goes through every layer twice."""
NOISE = 4e-2
"""Of logits of two layers in bf16; of a gradient's direction twice that."""


def flashes() -> list[str]:
    """Return the flash attentions that are installed and run here."""
    from trainer.config.model import Attention
    from trainer.errors import ModelError
    from trainer.model.attention import choose_attention

    found = []
    if torch.cuda.is_available():
        for name in ("flash_attention_2", "flash_attention_3", "flash_attention_4"):
            try:
                capability = torch.cuda.get_device_capability()
                found.append(choose_attention(Attention(name), capability).name)
            except ModelError:
                continue
    return found or ["none"]


@pytest.fixture(autouse=True)
def same_bits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ask flash attention and torch for kernels that give the same bits every time."""
    monkeypatch.setenv("FLASH_ATTENTION_DETERMINISTIC", "1")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def policy_of(name: str, attention: str) -> Any:
    """Return a model in bf16; the same for every attention."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from trainer.dist.mesh import alone
    from trainer.engine.engine import undivided
    from trainer.engine.policy import Policy
    from trainer.model.around_attention import let_attention_be_told
    from trainer.model.causal import CausalLM
    from trainer.model.head.head import install_loss_head

    if attention == "none":
        pytest.skip("no flash attention is installed")
    model_type, options = MODELS[name]
    is_flash = attention.startswith("flash")
    if is_flash:
        let_attention_be_told(attention, "data.share_prompts", "false", "true")
    torch.manual_seed(0)
    # Made in float32: what is drawn is the same on every device and in every type.
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(model_type, **{**SHAPE, **options}),
        dtype=torch.float32,
        attn_implementation=attention,
    ).to("cuda", torch.bfloat16)
    install_loss_head(model, 512)
    return Policy(undivided(CausalLM(model)), alone(torch.device("cuda")), is_flash=is_flash)


def told(policy: Any, packs: list[Any]) -> tuple[np.ndarray, Any]:
    """Return log-probabilities of what is learnt, and the gradient of a sum that weighs each otherwise, flat."""
    from trainer.data.pack.collate import collate

    policy.module.zero_grad()
    found = policy.log_probs(collate(packs, [0] * len(packs), SEQ_LEN, 0))
    (found * torch.linspace(1, 2, len(found), device=found.device)).sum().backward()
    gradients = [p.grad.reshape(-1) for p in policy.module.parameters() if p.grad is not None]
    return found.detach().cpu().numpy(), torch.cat(gradients).clone()


def assert_same(one: Any, other: Any) -> None:
    ours, theirs = (float(found[0].sum()) for found in (one, other))
    gradients = [found[1].double() for found in (one, other)]
    norms = [float(gradient.norm()) for gradient in gradients]
    apart = float((gradients[0] - gradients[1]).norm()) / norms[1]
    most = float(np.abs(one[0] - other[0]).max())
    print(
        f"sums {ours:.4f} and {theirs:.4f}, a token {most:.1e}, norms {norms}, gradients apart by {apart:.1e}"
    )
    assert ours == pytest.approx(theirs, rel=BF16_ROUNDING)
    assert norms[0] == pytest.approx(norms[1], rel=4 * BF16_ROUNDING)
    assert apart < 2 * NOISE


@pytest.mark.parametrize("attention", flashes())
@pytest.mark.parametrize("name", MODELS)
def test_flash_attention_has_shared_prompts_as_whole_documents(name: str, attention: str) -> None:
    """Wrong for windows alone: their end is not counted from the last key. Gradients alone: a copy's is lost."""
    from trainer.evaluate.proofs.branching import check_sharing

    policy = policy_of(name, attention)
    shared, whole = packs_of(UNITS, VOCABULARY)
    assert len(shared.tokens) < SEQ_LEN
    found = told(policy, [shared])
    assert_same(found, told(policy, whole))
    assert_same(found, told(policy_of(name, "sdpa"), [shared]))
    proof = check_sharing(policy, policy.module.lm.config, SEQ_LEN)
    print(proof)
    assert proof.moved == 0.0 and proof.apart < NOISE


@pytest.mark.parametrize("attention", flashes())
@pytest.mark.parametrize("name", MODELS)
def test_two_equal_passes_have_the_same_bits(name: str, attention: str) -> None:
    """Log-probabilities differ: a kernel draws. Gradients alone: rows of a prompt are added in any order."""
    policy = policy_of(name, attention)
    shared, _ = packs_of(UNITS, VOCABULARY)
    first = told(policy, [shared, shared])
    for _ in range(3):
        again = told(policy, [shared, shared])
        assert np.array_equal(first[0], again[0])
        assert torch.equal(first[1], again[1])


@pytest.mark.parametrize("attention", flashes())
def test_recomputed_layers_have_the_same_gradient(attention: str) -> None:
    from trainer.model.remat import apply_remat

    shared, _ = packs_of(UNITS, VOCABULARY)
    policy = policy_of("llama, heads of 64", attention)
    expected = told(policy, [shared])
    assert apply_remat(policy.module.lm, -1, False, has_prefix=False)
    policy.module.train()
    found = told(policy, [shared])
    assert np.array_equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
