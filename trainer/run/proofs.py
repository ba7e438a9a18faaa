"""What a run proves of the loaded model before its first step. Collective: every rank."""

from __future__ import annotations

import logging

import numpy as np

from trainer.config.tune import Init, TuneMethod
from trainer.evaluate.proofs.agreement import check_packing, check_rows
from trainer.evaluate.proofs.choice import check_choice
from trainer.evaluate.proofs.frozen import FrozenCheck, check_heard, check_silent
from trainer.evaluate.proofs.gradient import check_gradient
from trainer.evaluate.proofs.isolation import Isolation, check_isolation
from trainer.model.masks import reach
from trainer.run.session import Session

_LOG = logging.getLogger(__name__)


def prove_model(session: Session) -> Isolation:
    """Stop unless documents are alone and the gradient is the model's own."""
    probed = prove_isolation(session)
    prove_gradient(session)
    return probed


def prove_isolation(session: Session) -> Isolation:
    """Stop unless documents of a pack are what they are alone."""
    hf_config, seq_len = session.loaded.model.config, session.config.data.seq_len
    window = reach(hf_config)
    vocab_size = hf_config.get_text_config().vocab_size
    probed = check_isolation(session.policy, vocab_size, seq_len, window)
    if session.policy.in_rows:
        _LOG.info(
            "Isolation: every document is a row of its own; changing one moved the others' logits by %.1e of the "
            "largest; beside a longer one they are what they are alone to %.1e.",
            probed.moved,
            check_rows(session.policy, hf_config, seq_len),
        )
        return probed
    apart = check_packing(session.policy, hf_config, seq_len)
    _LOG.info(
        "Isolation: changing a document moved the others' logits by %.1e of the largest; in a pack they are what they "
        "are alone to %.1e%s.",
        probed.moved,
        apart,
        ""
        if not window
        else f"; the model's longest window, chunk or convolution is {window} tokens"
        + (", longer than a pack" * (window >= seq_len)),
    )
    return probed


def prove_gradient(session: Session) -> float:
    """Stop unless the gradient of the loss is the one of the model's own code; return how far they are apart."""
    loaded = session.loaded
    return check_gradient(session.policy, loaded.own_code, loaded.model.config, session.config.data.seq_len)


def prove_choice(session: Session) -> None:
    """Stop unless the biases of routers that move are heard, where some do."""
    if session.policy.choice_bias is not None:
        text = session.loaded.model.config.get_text_config()
        check_choice(session.policy, text.vocab_size, session.config.data.seq_len)


def prove_adapter(session: Session, probe: np.ndarray) -> FrozenCheck | None:
    """Stop unless an adapter begins as its base; return the check that it never moves it, None for whole weights."""
    tune = session.config.tune
    frozen = FrozenCheck(session.policy) if tune.method is not TuneMethod.full else None
    if tune.method in (TuneMethod.lora, TuneMethod.ia3) and tune.init is not Init.pissa:
        check_silent(session.policy, probe)
        _LOG.info("The adapter leaves the base's logits as they are.")
    if tune.is_virtual:
        moved = check_heard(session.policy, probe)
        _LOG.info("Every document of a pack sees the virtual tokens (%.1e of its logits' spread).", moved)
    return frozen
