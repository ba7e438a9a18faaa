"""Prove on the loaded model that an answer which shares its prompt in a pack is what it is behind a prompt of its own.

A made pair: a prompt that is longer than any window of the model where packs are long enough, a chosen and a rejected
answer. The rejected one, which stands behind the chosen one in the pack, is compared with a document that holds it
alone; then the chosen one is changed, and the rejected one must not move.

Shapes: K positions of the rejected answer, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.data.pack.collate import collate
from trainer.data.types import Int64s, Pack
from trainer.engine.policy import Policy
from trainer.errors import SelfCheckError
from trainer.evaluate.proofs.agreement import (
    allowed_apart,
    alone_inputs,
    apart_of,
    logits_of_call,
    probe_ids,
    typical,
    working,
)
from trainer.evaluate.proofs.called import BeforePass, at_once
from trainer.evaluate.proofs.isolation import TOLERANCE
from trainer.model.head.ask import Logits
from trainer.model.masks import reach

NUM_TOKENS = 192
"""Tokens of the probe of a model without windows."""
ANSWER = 24
"""Tokens of each answer, at most."""
FIX = "Set data.share_prompts=false."


@dataclass(frozen=True, slots=True)
class Branching:
    """What the probe found, as shares of the largest logit."""

    moved: float
    """How far the rejected answer's logits moved with the chosen one."""
    apart: float
    """How far they are from those behind a prompt of its own: median over positions."""


def _lengths(hf_config: Any, seq_len: int) -> tuple[int, int]:
    """Return the tokens of the prompt and of each answer."""
    window = reach(hf_config, seq_len)
    total = min(seq_len, max(NUM_TOKENS, window + 8 + 2 * ANSWER + 1))
    answer = max(1, min(ANSWER, (total - 3) // 3))
    return total - 2 * answer - 1, answer


def sharing_work(hf_config: Any, seq_len: int) -> int:
    """Return the tokens that `check_sharing` sends through the model."""
    prompt, answer = _lengths(hf_config, seq_len)
    return 2 * (prompt + 2 * answer + 1) + prompt + answer


def check_sharing(
    policy: Policy, hf_config: Any, seq_len: int, before_pass: BeforePass = at_once
) -> Branching:
    """Compare an answer that shares its prompt with the same alone, and change the other answer.

    Collective: every rank.

    Raises:
        SelfCheckError: The answer is not what it is alone, or sees the other one.
    """
    num_prompt, num_answer = _lengths(hf_config, seq_len)
    vocab_size = hf_config.get_text_config().vocab_size
    ids = probe_ids(num_prompt + 2 * num_answer, vocab_size, policy.device)[0].cpu().numpy()
    prompt, chosen, rejected = np.split(ids, [num_prompt, num_prompt + num_answer])
    other = (chosen + 1) % vocab_size
    alone_1T = torch.from_numpy(np.concatenate([prompt, rejected]))[None].to(policy.device)
    own_K = torch.arange(num_prompt - 1, num_prompt + num_answer, device=policy.device)

    def alone() -> Tensor:
        before_pass(num_prompt + num_answer)
        return logits_of_call(lambda: policy.answer_raw(Logits(own_K), **alone_inputs(alone_1T)))

    with policy.evaluating():
        found, after = (_logits(policy, prompt, one, rejected, before_pass) for one in (chosen, other))
        alone_KV = alone()
        ours_KV = found[num_answer:]
        apart = typical(apart_of(working(alone_KV), working(ours_KV)))
        allowed = allowed_apart(policy, apart, alone_KV, alone)
    if not apart <= allowed:
        raise SelfCheckError(
            f"An answer that shares its prompt must be what it is behind one of its own, but its logits differ by "
            f"{apart:.1e} of the largest instead (allowed: {allowed:.1e}). {FIX}"
        )
    moved_K = (working(found) - working(after)).abs().amax(-1)
    moved = float(moved_K[num_answer:].max()) / max(float(working(found).abs().max()), 1e-30)
    if not moved <= TOLERANCE or float(moved_K[:num_answer].max()) == 0.0:
        raise SelfCheckError(
            f"Answers that share a prompt must not see each other, but changing one moved the logits of the other by "
            f"{moved:.2e} of the largest instead (allowed: {TOLERANCE:.1e}). {FIX}"
        )
    return Branching(moved, apart)


def _logits(
    policy: Policy, prompt: Int64s, chosen: Int64s, rejected: Int64s, before_pass: BeforePass
) -> Tensor:
    """Return logits [., V] of the chosen answer's tokens, then of the prompt's last and those of the rejected one."""
    num_prompt, num_answer = len(prompt), len(chosen)
    tokens = np.concatenate([prompt, chosen, prompt[-1:], rejected])
    is_learnt = np.ones(len(tokens), dtype=bool)
    lengths = [num_prompt + num_answer, 1 + num_answer]
    pack = Pack(tokens, is_learnt, lengths, [2], {}, [0, num_prompt - 1])
    micro = collate([pack], [0], policy.row_length(len(tokens)), 0)
    kept_K = torch.arange(num_prompt, len(tokens), device=policy.device)
    before_pass(len(tokens))
    return logits_of_call(lambda: policy.logits(micro, kept_K))
