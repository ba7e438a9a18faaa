"""Benchmark tasks on a GPU: likelihoods and greedy answers under flash attention against float32 without a cache."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("flash_attn")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
VOCAB_SIZE = 997
NEAR_TIE_NATS = 0.2
"""Rounding to bf16 may choose between tokens this close."""


@pytest.fixture(scope="module")
def exact() -> Any:
    """Return a float32 Llama with heads that flash attention has kernels for."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    torch.manual_seed(3)
    return LlamaForCausalLM(config).eval().cuda()


@pytest.fixture(scope="module")
def flash(exact: Any) -> Any:
    """Return the same weights in bfloat16 under flash attention, as the evaluator wants a model."""
    from trainer.dist.mesh import alone
    from trainer.engine.engine import undivided
    from trainer.engine.policy import Policy
    from trainer.evaluate.tasks.batches import TaskModel
    from trainer.model.causal import CausalLM
    from trainer.model.head.head import install_loss_head

    model = copy.deepcopy(exact).to(torch.bfloat16)
    model.set_attn_implementation("flash_attention_2")
    install_loss_head(model, 64)
    return TaskModel(
        policy=Policy(undivided(CausalLM(model)), alone(torch.device("cuda")), True),
        hf_config=model.config,
        pad_id=0,
        end_ids=frozenset(),
        max_length=512,
        batch_tokens=700,
    )


def log_probs(exact: Any, tokens: list[int]) -> Any:
    with torch.no_grad():
        return torch.log_softmax(exact(torch.tensor([tokens], device="cuda")).logits[0].double(), dim=-1)


def drawn(seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(VOCAB_SIZE) for _ in range(rng.randrange(2, 120))] for _ in range(24)]


def test_likelihoods_are_those_of_float32(exact: Any, flash: Any) -> None:
    """A difference: documents of a batch see each other, or the padding is seen."""
    from trainer.evaluate.tasks.likelihood import log_likelihoods

    requests = [(ids[: len(ids) // 2], ids[len(ids) // 2 :]) for ids in drawn(0)]
    for (nats, _), (context, continuation) in zip(log_likelihoods(flash, requests), requests, strict=True):
        rows = log_probs(exact, [*context, *continuation])[len(context) - 1 : -1]
        expected = rows.gather(1, torch.tensor(continuation, device="cuda")[:, None])
        assert nats / len(continuation) == pytest.approx(float(expected.mean()), abs=0.03)


def test_greedy_answers_are_the_most_likely_tokens_of_float32(exact: Any, flash: Any) -> None:
    """A difference: flash attention with a cache and left padding sees the padding, or takes wrong positions."""
    from trainer.evaluate.tasks.greedy import Prompt, continue_greedily

    prompts = [Prompt(ids, 12 + len(ids) % 5, ()) for ids in drawn(1)]
    found = continue_greedily(flash, prompts, lambda ids: "")
    distinct = set()
    for ids, prompt in zip(found, prompts, strict=True):
        assert len(ids) == prompt.max_new_tokens
        rows = log_probs(exact, [*prompt.ids, *ids])[len(prompt.ids) - 1 : -1]
        chosen = rows.gather(1, torch.tensor(ids, device="cuda")[:, None])[:, 0]
        assert float((rows.amax(dim=-1) - chosen).max()) <= NEAR_TIE_NATS
        distinct |= set(ids)
    assert len(distinct) > 20, "these weights say the same token for ever"
