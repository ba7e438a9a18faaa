"""Models whose layers see a window or a chunk, packed on a GPU: flash attention against SDPA, and against no pack."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

WINDOW = 64
SHAPE = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "pad_token_id": 0,
    "max_position_embeddings": 1024,
    "initializer_range": 0.1,
}
BY_LAYER = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
WITH_FLASH: dict[str, dict[str, Any]] = {
    "mistral": {"num_hidden_layers": 2, "sliding_window": WINDOW},
    "gemma3_text": BY_LAYER | {"sliding_window": WINDOW, "query_pre_attn_scalar": 64},
    "olmo3": BY_LAYER | {"sliding_window": WINDOW},
}
WITHOUT: dict[str, dict[str, Any]] = {
    "gpt_oss": BY_LAYER | EXPERTS | {"sliding_window": WINDOW},
    "llama4_text": {
        **EXPERTS,
        "num_hidden_layers": 2,
        "intermediate_size_mlp": 512,
        "attention_chunk_size": WINDOW,
        "layer_types": ["chunked_attention", "full_attention"],
        "no_rope_layers": [1, 0],
        "moe_layers": [1],
        "num_experts_per_tok": 1,
    },
}
LENGTHS = (200, 130, 150, 32)
"""Of the documents of a pack: most are longer than the window."""
BF16_ROUNDING = 2.0**-8
"""Of a loss. Of a gradient's norm four times that: it goes through every layer twice."""
NOISE = 4e-2
"""Of logits of two layers in bf16."""


def config_of(model_type: str) -> Any:
    """Return the configuration of a small model of a type; of one that this transformers has."""
    from transformers import CONFIG_MAPPING, AutoConfig

    if model_type not in CONFIG_MAPPING:
        pytest.skip("this transformers does not have the family")
    return AutoConfig.for_model(model_type, **SHAPE, **(WITH_FLASH | WITHOUT)[model_type])


def policy_of(model_type: str, attention: str) -> Any:
    """Return a model in bf16; the same for every attention."""
    from transformers import AutoModelForCausalLM

    from trainer.dist.mesh import alone
    from trainer.engine.engine import undivided
    from trainer.engine.policy import Policy
    from trainer.model.causal import CausalLM
    from trainer.model.head.head import install_loss_head

    torch.manual_seed(0)
    # Made in float32: what is drawn is the same on every device and in every type.
    model = AutoModelForCausalLM.from_config(
        config_of(model_type), dtype=torch.float32, attn_implementation=attention
    ).to("cuda", torch.bfloat16)
    install_loss_head(model, 512)
    mesh = alone(torch.device("cuda"))
    return Policy(undivided(CausalLM(model)), mesh, is_flash=attention.startswith("flash"))


def packs() -> tuple[list[Any], list[Any]]:
    """Return one pack of documents, and every document as a pack of its own."""
    from trainer.data.types import Pack

    tokens = np.random.default_rng(0).integers(1, SHAPE["vocab_size"], sum(LENGTHS))
    cuts = itertools.pairwise(np.cumsum((0, *LENGTHS)))
    alone = [Pack(tokens[a:b], np.ones(b - a, dtype=bool), [int(b - a)]) for a, b in cuts]
    return [Pack(tokens, np.ones(len(tokens), dtype=bool), list(LENGTHS))], alone


def told(policy: Any, given: list[Any]) -> tuple[float, float]:
    """Return the loss per token of packs and the norm of its gradient."""
    from trainer.data.pack.collate import collate

    num_targets = sum(LENGTHS) - len(LENGTHS)
    policy.module.zero_grad()
    loss = 0.0
    for pack in given:
        loss_sum = policy.nll(collate([pack], [0], len(pack.tokens), 0)).loss_sum
        (loss_sum / num_targets).backward()
        loss += float(loss_sum) / num_targets
    gradients = [p.grad.double().square().sum() for p in policy.module.parameters() if p.grad is not None]
    return loss, float(torch.stack(gradients).sum().sqrt())


def apart(one: Any, other: Any, pack: Any) -> float:
    """Return how far the logits of two models are apart, of the size of the second's."""
    from trainer.data.pack.collate import collate

    micro = collate([pack], [0], len(pack.tokens), 0)
    kept = torch.arange(len(pack.tokens), device=one.device)
    with torch.no_grad():
        first, second = (policy.logits(micro, kept).float() for policy in (one, other))
    found = float((first - second).norm() / second.norm())
    print(f"logits are apart by {found:.1e}")
    return found


def assert_same(found: tuple[float, float], expected: tuple[float, float]) -> None:
    print(f"loss {found[0]:.5f} and {expected[0]:.5f}, gradient {found[1]:.5f} and {expected[1]:.5f}")
    assert found[0] == pytest.approx(expected[0], rel=BF16_ROUNDING)
    assert found[1] == pytest.approx(expected[1], rel=4 * BF16_ROUNDING)


@pytest.mark.parametrize("model_type", WITH_FLASH)
def test_flash_attention_has_the_loss_and_gradient_of_sdpa(model_type: str) -> None:
    """A failure points at `cu_seq_lens` or at the window that flash attention is given."""
    from trainer.config.model import Attention
    from trainer.evaluate.proofs.agreement import check_packing
    from trainer.evaluate.proofs.isolation import check_isolation
    from trainer.model.attention import choose_attention, is_flash_installed, offered

    config = config_of(model_type)
    if not is_flash_installed():
        pytest.skip("no flash attention is installed")
    chosen = choose_attention(Attention.auto, torch.cuda.get_device_capability(), has=offered(config))
    assert chosen.is_flash, chosen.reason
    pack, alone = packs()
    flash, sdpa = policy_of(model_type, chosen.name), policy_of(model_type, "sdpa")
    expected = told(sdpa, pack)
    assert_same(told(flash, pack), expected)
    assert_same(told(flash, alone), expected)
    check_isolation(flash, SHAPE["vocab_size"], sum(LENGTHS), window=WINDOW)
    assert check_packing(flash, config, sum(LENGTHS)) < NOISE
    assert apart(flash, sdpa, pack[0]) < NOISE
    sdpa.module.lm.config.sliding_window = None  # the masks are made from it
    assert apart(flash, sdpa, pack[0]) > 4 * NOISE


@pytest.mark.parametrize("model_type", WITHOUT)
def test_a_family_without_flash_attention_is_packed_by_its_own(model_type: str) -> None:
    """gpt-oss has sinks and Llama 4 chunks, which no flash attention that can be installed computes."""
    from trainer.config.model import Attention
    from trainer.errors import ModelError
    from trainer.evaluate.proofs.agreement import check_packing
    from trainer.evaluate.proofs.isolation import check_isolation
    from trainer.model.attention import choose_attention, offered

    config = config_of(model_type)
    has, capability = offered(config), torch.cuda.get_device_capability()
    chosen = choose_attention(Attention.auto, capability, has=has)
    assert chosen.name in ("sdpa", "eager")
    with pytest.raises(ModelError, match=r"Set model\.attention=auto"):
        choose_attention(Attention.flash_attention_2, capability, has=has)
    pack, alone = packs()
    policy = policy_of(model_type, chosen.name)
    assert_same(told(policy, pack), told(policy, alone))
    check_isolation(policy, SHAPE["vocab_size"], sum(LENGTHS), window=WINDOW)
    assert check_packing(policy, config, sum(LENGTHS)) < NOISE
