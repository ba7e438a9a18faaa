"""Prove on the loaded model that the biases which move between steps steer the choice of experts, and count right.

They were found by their shape. With the bias of one expert of each layer raised above all, every token must be sent to
it, and the count must say so: of tokens, without padding, each once.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import numpy as np
import torch

from trainer.data.pack.collate import collate
from trainer.data.types import Pack
from trainer.engine.model_inputs import labels_of
from trainer.engine.policy import Policy
from trainer.errors import SelfCheckError
from trainer.evaluate.proofs.called import BeforePass, at_once, called
from trainer.model.choice_bias import ChoiceBias
from trainer.model.head.nll import Nll

_LOG = logging.getLogger(__name__)

NUM_TOKENS = 64
ABOVE_ALL = 1e4
"""Added to a bias: scores of experts are at most a few hundred."""


def choice_work(seq_len: int) -> int:
    """Return the tokens that `check_choice` sends through the model."""
    return min(seq_len, NUM_TOKENS)


def check_choice(policy: Policy, vocab_size: int, seq_len: int, before_pass: BeforePass = at_once) -> None:
    """Raise the bias of the last expert of each layer and count the tokens that are sent to it. Collective: every rank.

    Raises:
        SelfCheckError: Not every token was, or was counted so.
    """
    bias, load = policy.choice_bias, policy.expert_load
    if bias is None or load is None:
        return
    width = choice_work(seq_len)
    num_tokens = width - width // 4
    tokens = np.random.default_rng(0).integers(0, vocab_size, num_tokens)
    pack = Pack(tokens, np.ones(num_tokens, dtype=bool), [num_tokens // 2, num_tokens - num_tokens // 2])
    micro = collate([pack], [0], width, 0)
    load.take()
    before_pass(width)
    with _raised(bias), policy.engine.differentiating() as module, called("The model, with a gradient,"):
        module(Nll(labels_of(micro, policy.device).reshape(-1)), **policy.inputs(micro))
    if policy.balance is not None:
        policy.balance.take()
        policy.balance.take_seen()
    counts = load.take()
    for place in bias.places:
        if counts[place][-1] != num_tokens:
            raise SelfCheckError(
                f"`train.router_bias_rate` must be 0 for this model, but is {bias.rate:g} instead: with the bias of an "
                f"expert above all others, {counts[place][-1]:.0f} tokens of {num_tokens} were counted for it. What "
                "was taken for a bias is none, or the choice is told otherwise than it is heard. Set it to 0."
            )
    _LOG.info(
        "The biases of %d routers steer the choice: with the last expert's raised, it is sent every token.",
        len(bias.places),
    )


@contextlib.contextmanager
def _raised(bias: ChoiceBias) -> Iterator[None]:
    """Raise the bias of the last expert of each layer, and put back what was there."""
    before = [values.clone() for values in bias.biases]
    try:
        with torch.no_grad():
            for values in bias.biases:
                values.view(-1)[-1] += ABOVE_ALL
        yield
    finally:
        for values, kept in zip(bias.biases, before, strict=True):
            values.copy_(kept)
