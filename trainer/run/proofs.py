"""What a run proves of the loaded model before its first step. Collective: every rank."""

from __future__ import annotations

import logging

import numpy as np

from trainer.config.tune import Init, TuneMethod
from trainer.evaluate.proofs.agreement import (
    check_head,
    check_packing,
    check_rows,
    head_work,
    packing_work,
    rows_work,
)
from trainer.evaluate.proofs.branching import Branching, check_sharing, sharing_work
from trainer.evaluate.proofs.called import BeforePass, at_once
from trainer.evaluate.proofs.choice import check_choice, choice_work
from trainer.evaluate.proofs.course import Course, Proof
from trainer.evaluate.proofs.frozen import FrozenCheck, check_heard, check_silent, moved_by_adapter
from trainer.evaluate.proofs.gradient import check_gradient, gradient_work
from trainer.evaluate.proofs.isolation import (
    ForwardTime,
    Isolation,
    check_isolation,
    isolation_work,
    time_forward,
)
from trainer.evaluate.proofs.last_score import check_score
from trainer.model.head.rewards import is_scorer
from trainer.model.masks import reach
from trainer.run.heed import SOON
from trainer.run.session import Session

_LOG = logging.getLogger(__name__)


def prove_model(session: Session) -> ForwardTime:
    """Prove what a run needs of its model; return how long a forward pass takes.

    Raises:
        SelfCheckError: Something is not as it must be.
        GivenUp: A rank was asked to stop meanwhile.
    """
    session.expect("before the next pass of the proofs")
    course = Course(_planned(session), session.heed, _LOG.info)
    prove_head(session, course.begin())
    vocab_size, seq_len = (
        session.loaded.model.config.get_text_config().vocab_size,
        session.config.data.seq_len,
    )
    if session.config.train.isolation_probe:
        forward = prove_isolation(session, course).forward
        if session.shares_prompts:
            prove_sharing(session, course.begin())
        prove_gradient(session, course.begin())
    else:
        forward = time_forward(session.policy, vocab_size, seq_len, lambda work: session.heed())
    if session.policy.choice_bias is not None:
        check_choice(session.policy, vocab_size, seq_len, course.begin())
    session.expect(SOON)
    return forward


def _planned(session: Session) -> list[Proof]:
    """Return the proofs of a run in their order."""
    hf_config, seq_len = session.loaded.model.config, session.config.data.seq_len
    planned = [Proof("that the loss is made from its own logits", head_work(seq_len))]
    if session.config.train.isolation_probe:
        in_rows = session.policy.in_rows
        alone = (rows_work if in_rows else packing_work)(hf_config, seq_len)
        sharing = (
            [Proof("that answers share their prompt alone", sharing_work(hf_config, seq_len))]
            if session.shares_prompts
            else []
        )
        planned += [
            Proof("that documents do not see each other", isolation_work(seq_len, reach(hf_config))),
            Proof(f"that {'beside others' if in_rows else 'in a pack'} one is what it is alone", alone),
            *sharing,
            Proof("that the gradient is that of its own code", gradient_work(seq_len)),
        ]
    if session.policy.choice_bias is not None:
        planned.append(Proof("that the biases of its routers are heard", choice_work(seq_len)))
    return planned


def prove_head(session: Session, before_pass: BeforePass = at_once) -> None:
    """Stop unless the loss is made from the model's own logits, or from its own score."""
    check = check_score if is_scorer(session.policy.module) else check_head
    check(session.policy, session.loaded.model.config, session.config.data.seq_len, before_pass)


def prove_isolation(session: Session, course: Course | None = None) -> Isolation:
    """Stop unless documents of a pack are what they are alone."""
    hf_config, seq_len = session.loaded.model.config, session.config.data.seq_len

    def begin() -> BeforePass:
        return at_once if course is None else course.begin()

    window = reach(hf_config)
    vocab_size = hf_config.get_text_config().vocab_size
    probed = check_isolation(session.policy, vocab_size, seq_len, window, begin())
    if session.policy.in_rows:
        _LOG.info(
            "Isolation: every document is a row of its own; changing one moved the others' logits by %.1e of the "
            "largest; beside a longer one they are what they are alone to %.1e.",
            probed.moved,
            check_rows(session.policy, hf_config, seq_len, begin()),
        )
        return probed
    apart = check_packing(session.policy, hf_config, seq_len, begin())
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


def prove_sharing(session: Session, before_pass: BeforePass = at_once) -> Branching:
    """Stop unless answers that share a prompt are what they are behind one of their own."""
    hf_config, seq_len = session.loaded.model.config, session.config.data.seq_len
    found = check_sharing(session.policy, hf_config, seq_len, before_pass)
    _LOG.info(
        "Shared prompts: changing a chosen answer moved the rejected one's logits by %.1e of the largest; behind a "
        "prompt of its own it is the same to %.1e.",
        found.moved,
        found.apart,
    )
    return found


def prove_gradient(session: Session, before_pass: BeforePass = at_once) -> float:
    """Stop unless the gradient of the loss is the one of the model's own code; return how far they are apart."""
    loaded, seq_len = session.loaded, session.config.data.seq_len
    return check_gradient(session.policy, loaded.own_code, loaded.model.config, seq_len, before_pass)


def prove_adapter(session: Session, probe: np.ndarray) -> FrozenCheck | None:
    """Stop unless a fresh adapter begins as its base; return the check that it never moves that, None without one."""
    tune = session.config.tune
    frozen = FrozenCheck(session.policy) if tune.method is not TuneMethod.full else None
    if session.start is not None:
        moved = moved_by_adapter(session.policy, probe)
        _LOG.info(
            "The adapter that the run goes on with moves the base's logits by %.1e of their spread.", moved
        )
        if not moved:
            _LOG.warning("It changes nothing: the run begins at its base, as without tune.start.")
    elif tune.method in (TuneMethod.lora, TuneMethod.ia3) and tune.init is not Init.pissa:
        check_silent(session.policy, probe)
        _LOG.info("The adapter leaves the base's logits as they are.")
    if tune.is_virtual:
        moved = check_heard(session.policy, probe)
        _LOG.info("Every document of a pack sees the virtual tokens (%.1e of its logits' spread).", moved)
    return frozen
