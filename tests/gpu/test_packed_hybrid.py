"""Models that carry something along a row, packed: their kernels are told where documents begin."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(importlib.util.find_spec("causal_conv1d") is None, reason="needs causal-conv1d"),
]

SHAPE = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "pad_token_id": 0,
    "initializer_range": 0.1,
}
CARRYING: dict[str, dict[str, Any]] = {
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "qwen3_5_text": {
        "layer_types": ["linear_attention", "full_attention"],
        "linear_key_head_dim": 64,
        "linear_value_head_dim": 64,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
    },
}
LENGTHS = (200, 130, 150, 30)
SEQ_LEN = 512


def policy_of(model_type: str) -> Any:
    """Return a model in bf16 with flash attention, whose weights are large enough for what leaks to be seen."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from trainer.dist.mesh import alone
    from trainer.engine.engine import undivided
    from trainer.engine.policy import Policy
    from trainer.model.causal import CausalLM
    from trainer.model.head.head import install_loss_head

    if model_type == "qwen3_5_text" and importlib.util.find_spec("fla") is None:
        pytest.skip("needs flash-linear-attention")
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **SHAPE, **CARRYING[model_type])
    model = AutoModelForCausalLM.from_config(
        config, dtype=torch.bfloat16, attn_implementation="flash_attention_2"
    ).to("cuda")
    install_loss_head(model, 512)
    return Policy(undivided(CausalLM(model)), alone(torch.device("cuda")), is_flash=True, carries=True)


@pytest.mark.parametrize("model_type", CARRYING)
def test_documents_of_a_pack_are_what_they_are_alone(model_type: str) -> None:
    """A failure means that a kernel no longer takes `seq_idx` or `cu_seq_lens_q`, or that they are not given."""
    from trainer.errors import SelfCheckError
    from trainer.evaluate.proofs.agreement import check_packing
    from trainer.evaluate.proofs.isolation import check_isolation

    policy = policy_of(model_type)
    check_isolation(policy, SHAPE["vocab_size"], SEQ_LEN, window=64)
    assert check_packing(policy, policy.module.lm.config, SEQ_LEN) < 2e-2
    untold = dataclasses.replace(policy, carries=False)
    with pytest.raises(SelfCheckError, match="Documents in one pack see each other"):
        check_isolation(untold, SHAPE["vocab_size"], SEQ_LEN, window=64)


@pytest.mark.parametrize("model_type", CARRYING)
def test_a_pack_has_the_gradient_of_its_documents(model_type: str) -> None:
    """A failure means that a backward pass goes across the beginning of a document."""
    from trainer.data.pack.collate import collate
    from trainer.data.types import Pack

    policy = policy_of(model_type)
    tokens = np.random.default_rng(0).integers(1, SHAPE["vocab_size"], sum(LENGTHS))

    def gradients(packs: list[Pack]) -> dict[str, Any]:
        policy.module.zero_grad()
        for pack in packs:
            micro = collate([pack], [0], SEQ_LEN if len(pack.lengths) > 1 else len(pack.tokens), 0)
            policy.nll(micro).loss_sum.backward()
        return {name: p.grad.float().clone() for name, p in policy.module.named_parameters()}

    whole = Pack(tokens, np.ones(len(tokens), dtype=bool), list(LENGTHS))
    starts = np.cumsum((0, *LENGTHS))
    alone = [
        Pack(tokens[a:b], np.ones(b - a, dtype=bool), [int(b - a)]) for a, b in itertools.pairwise(starts)
    ]
    packed, expected, backwards = gradients([whole]), gradients(alone), gradients(alone[::-1])
    for name, gradient in expected.items():
        size = gradient.norm()
        noise = float((backwards[name] - gradient).norm() / size)
        assert float((packed[name] - gradient).norm() / size) < max(3e-2, 3 * noise), name
