"""Prove on the loaded reward model that what is learnt is the score that its own forward gives of a text."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.engine.policy import Policy
from trainer.errors import SelfCheckError
from trainer.evaluate.proofs.agreement import HEAD_FLOOR, HEAD_TOKENS
from trainer.evaluate.proofs.called import BeforePass, anywhere, at_once, called
from trainer.model.head.ask import OwnLogits, working_type
from trainer.model.head.rewards import Rewards

_LOG = logging.getLogger(__name__)


def check_score(policy: Policy, hf_config: Any, seq_len: int, before_pass: BeforePass = at_once) -> float:
    """Compare the score of one short document with that of the model's own forward; return how far they are apart.

    As a share of the score, or of 1 where that is more: a score is a sum that may be near 0. Collective: every rank.

    Raises:
        SelfCheckError: They differ by more than rounding, or the model's own forward cannot be called.
    """
    num_tokens = min(seq_len, HEAD_TOKENS)
    ids = np.random.default_rng(0).integers(0, hf_config.get_text_config().vocab_size, num_tokens)
    tokens_1T = torch.from_numpy(ids)[None].to(policy.device)
    places_1T = torch.arange(num_tokens, device=policy.device)[None]
    last = torch.tensor([num_tokens - 1], device=policy.device)
    with policy.evaluating():
        before_pass(num_tokens)
        with called("The model's own forward"):
            own: Tensor = policy.answer_raw(OwnLogits(), input_ids=tokens_1T)
        before_pass(num_tokens)
        ours = policy.answer_raw(Rewards(last), input_ids=tokens_1T, position_ids=places_1T)
    allowed = HEAD_FLOOR.get(own.dtype, 2.0**-7)
    own = own.reshape(-1).to(working_type(own))
    if not bool(own.isfinite().all()):
        _LOG.warning("The model's scores are not finite: that they are its own cannot be proved.")
        return float("nan")
    found = float((own - ours).abs().max()) / max(float(own.abs().max()), 1.0)
    if anywhere(policy.mesh, own.shape != ours.shape or not found <= allowed):
        raise SelfCheckError(
            f"The score that is learnt must be the one of the model's own forward, but is {found:.1e} off instead "
            f"(allowed: {allowed:.1e}). This architecture is not supported yet."
        )
    _LOG.info("What is learnt is the score of the model's own forward: apart by %.1e.", found)
    return found
