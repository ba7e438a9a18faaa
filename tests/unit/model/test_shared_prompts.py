"""Answers that share a prompt are what they are as whole documents, under a mask and as flash attention has it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.helpers.shared import flash_in_torch, packs_of
from tests.unit.model.test_masks import BOTH, SHAPE
from trainer.data.pack.collate import IGNORE, collate
from trainer.engine.model_inputs import model_inputs
from trainer.errors import ModelError
from trainer.model.around_attention import around_all, let_attention_be_told
from trainer.model.causal import CausalLM
from trainer.model.head.head import install_loss_head
from trainer.model.head.log_probs import LogProbs
from trainer.model.masks import block_mask, with_prefixes
from trainer.model.remat import apply_remat
from trainer.model.shared_prompts import SharedPrompts, shared_prompts

UNITS = [(9, [3, 4]), (6, [5]), (12, [2, 3, 1]), (1, [2, 2])]
ROUNDING = 3e-6
"""In nats. Weights are in float64; norms, rotations and softmax of some families compute in float32."""
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"num_attention_heads": 4, "num_key_value_heads": 2},
    "qwen3": {},
    "mistral": {"sliding_window": 5},
    "gemma3_text": {**BOTH, "query_pre_attn_scalar": 8},
    "gpt2": {},
    "mixtral": {"num_local_experts": 4, "output_router_logits": False},
}


@pytest.fixture(scope="module")
def flash() -> str:
    """Register plain torch in the place of flash attention."""
    name = "of_boundaries_in_torch"
    ALL_ATTENTION_FUNCTIONS.register(name, flash_in_torch)
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, flash_attention_mask)
    let_attention_be_told(name, "data.share_prompts", "false", "true")
    return name


def outcome(model: CausalLM, packs: list[Any], seq_len: int, is_flash: bool) -> tuple[Tensor, list[Tensor]]:
    """Return log-probabilities of what is learnt, and the gradients of a sum that weighs each otherwise."""
    micro = collate(packs, [0] * len(packs), seq_len, 0)
    labels_N = micro.labels_BT.reshape(-1)
    rows_S = np.flatnonzero(labels_N != IGNORE)
    ask = LogProbs(torch.from_numpy(rows_S), torch.from_numpy(labels_N[rows_S]))
    found = model(ask, **model_inputs(micro, torch.device("cpu"), is_flash))
    model.zero_grad()
    (found * torch.linspace(1, 2, len(found))).sum().backward()
    # Of an expert that nothing was sent to there is none.
    return found.detach(), [
        torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()
    ]


def made(family: str, attention: str) -> CausalLM:
    config = AutoConfig.for_model(family, **{**SHAPE, **FAMILIES[family]})
    if family == "gpt2":
        config.n_embd, config.n_layer, config.n_head, config.n_positions = 16, 2, 2, 64
        config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    config.output_router_logits = False
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(
        config, attn_implementation=attention, experts_implementation="eager"
    )
    lm = lm.double()
    install_loss_head(lm, 16)
    return CausalLM(lm)


@pytest.mark.parametrize("attention", ["sdpa", "eager", "flash"])
@pytest.mark.parametrize("family", FAMILIES)
def test_answers_and_gradients_are_those_of_whole_documents(family: str, attention: str, flash: str) -> None:
    """Wrong beyond 5 tokens in mistral and gemma3 alone: a window is counted along the row."""
    shared, whole = packs_of(UNITS, 40)
    model = made(family, flash if attention == "flash" else attention)
    is_flash = attention == "flash"
    assert len(shared.tokens) + 3 <= 64 < sum(len(one.tokens) for one in whole)
    ours, ours_by_parameter = outcome(model, [shared], 64, is_flash)
    found, by_parameter = outcome(model, whole, 64, is_flash)
    assert float((ours - found).abs().max()) < ROUNDING
    for one, other in zip(ours_by_parameter, by_parameter, strict=True):
        assert float((one - other).abs().max()) < 10 * ROUNDING * float(other.abs().max()) + 1e-7


def test_recomputed_layers_see_the_prompt_and_two_passes_are_the_same_bits(flash: str) -> None:
    shared, _ = packs_of(UNITS, 40)
    model = made("llama", flash)
    expected = outcome(model, [shared], 64, True)
    assert apply_remat(model.lm, -1, False, has_prefix=False)
    model.lm.train()
    for _ in range(2):
        found = outcome(model, [shared], 64, True)
        assert torch.equal(found[0], expected[0])
        assert all(torch.equal(one, other) for one, other in zip(found[1], expected[1], strict=True))


def test_a_branch_sees_the_prompt_before_its_last_token_and_no_other_answer() -> None:
    """A prompt of 3 with answers of 2 and 1: 0 0 0 0 0 | 1 1, and a token of padding."""
    segments = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 2]])
    positions = torch.tensor([[0, 1, 2, 3, 4, 2, 3, 0]])
    first, prefix = torch.tensor([0, 0, 2])[segments], torch.tensor([0, 2, 0])[segments]
    mask = with_prefixes(block_mask(segments), segments, positions, first, prefix)
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0, 1, 0, 0],
        [1, 1, 0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 0, 0, 1],
    ]


def laid_out() -> SharedPrompts:
    """A prompt of 2 that two answers see behind the first, then a document."""
    boundaries = np.array([0, 4, 6, 7, 9], dtype=np.int32)
    return shared_prompts(boundaries, np.array([0, 2, 2, 0]), np.array([0, 0, 0, 3]), torch.from_numpy)


def test_keys_of_a_prompt_stand_before_those_of_every_answer() -> None:
    shared = laid_out()
    assert shared.rows_M.tolist() == [0, 1, 2, 3, 0, 1, 4, 5, 0, 1, 6, 7, 8]
    assert shared.own_N.tolist() == [0, 1, 2, 3, 6, 7, 10, 11, 12]
    assert shared.boundaries.tolist() == [0, 4, 8, 11, 13] and shared.boundaries.dtype == torch.int32
    assert shared.most == 4
    assert [(rows.tolist(), places.tolist()) for rows, places in shared.copies] == [
        ([0, 1], [4, 5]),
        ([0, 1], [8, 9]),
    ]


def test_a_prompt_gets_the_gradient_of_every_answer() -> None:
    shared = laid_out()
    states = torch.zeros(1, 1, 9, 1, requires_grad=True)
    (shared.with_prompts(states)[0, 0, :, 0] * 2.0 ** torch.arange(13)).sum().backward()
    assert states.grad is not None
    assert states.grad[0, 0, :, 0].tolist() == [1 + 16 + 256, 2 + 32 + 512, 4, 8, 64, 128, 1024, 2048, 4096]


def test_a_model_whose_attention_is_not_told_is_refused() -> None:
    shared, _ = packs_of(UNITS, 40)
    model = made("llama", "sdpa")
    inputs = model_inputs(collate([shared], [0], 64, 0), torch.device("cpu"), flash=True)
    around = inputs["around_attention"]
    with (
        pytest.raises(ModelError, match=r"`data.share_prompts` must be false for llama.* 2 of its 2 layers"),
        around_all(around, model.lm),
    ):
        pass
