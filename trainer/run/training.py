"""Composition root: builds the parts of a run in order, trains, tears down. The only place that knows all rooms."""

from __future__ import annotations

import functools
import logging
import os
from contextlib import ExitStack
from pathlib import Path

from trainer.checkpoint.best import BestRule
from trainer.checkpoint.space import make_room
from trainer.checkpoint.state import TrainState
from trainer.config.schema import RunConfig
from trainer.config.snapshot import asked_digest, config_digest
from trainer.config.teacher import distilled
from trainer.data.store.store import data_digest
from trainer.dist.env import rank_env
from trainer.dist.progress import PROGRESS, Phase
from trainer.evaluate.proofs.fingerprint import probe_tokens
from trainer.mix.loader import StepLoader, TrainLoader
from trainer.mix.mixing import Mixing
from trainer.mix.ratio import replay_weights
from trainer.objective.build import build_objective
from trainer.objective.contract import Objective
from trainer.optim.schedule import lr_factor
from trainer.report.announce import announce
from trainer.run.cadence import Cadence, best_rule, cadence_of, save_clock_of
from trainer.run.chooser import build_chooser
from trainer.run.comparable import why_no_comparison
from trainer.run.conclusion import conclusion
from trainer.run.during import build_during
from trainer.run.evaluator import build_evaluator
from trainer.run.heed import COMPARING, SOON, GivenUp, before_training
from trainer.run.journal import Journal
from trainer.run.layers import take_layer_drift
from trainer.run.loop import train
from trainer.run.open_journal import open_journal
from trainer.run.open_rounds import build_rounds
from trainer.run.parts import RunParts, StopReason
from trainer.run.proofs import prove_adapter, prove_model
from trainer.run.recovery import probe_recovery
from trainer.run.references import RunReferences, build_references
from trainer.run.resumer import RunIdentity
from trainer.run.saver import Saver
from trainer.run.session import Session, open_session
from trainer.run.sizes import model_shape
from trainer.run.spikes import SpikeWatch
from trainer.run.teaching import build_teacher
from trainer.run.told_start import say_how_long, say_what_runs
from trainer.run.watching import pace_of
from trainer.runtime.disk import disk_explained
from trainer.runtime.gc import ManualGc
from trainer.runtime.job import deadline, is_requeued
from trainer.runtime.shortage import shortage_explained
from trainer.runtime.signals import StopFlag

_LOG = logging.getLogger(__name__)

NOT_BEGUN = "A signal asked to stop before the first step: nothing was trained, and nothing is saved."


def run_training(config: RunConfig) -> StopReason:
    """Train as configured. Collective: every rank calls it with the same configuration, the first holds run_lock."""
    with ExitStack() as stack:
        is_first = rank_env(os.environ).is_first
        stop_flag = stack.enter_context(StopFlag(deadline(os.environ), tells=is_first))
        stop_flag.when = before_training(SOON)
        # Inside the stack: the other ranks hear of the sentence, not of what it explains.
        size, layers = config.train.micro_batch_size, config.model.checkpoint_layers
        with (
            shortage_explained("train.micro_batch_size", size, layers),
            disk_explained(Path(config.run_dir), trains=True),
        ):
            resumes = config.checkpoint.enabled and (config.checkpoint.resume or is_requeued(os.environ))
            try:
                session = open_session(config, stack, resumes, stop_flag)
                return _train(session, stop_flag, stack)
            except GivenUp:
                _LOG.info(NOT_BEGUN)
                return StopReason.preempted


def _train(session: Session, stop_flag: StopFlag, stack: ExitStack) -> StopReason:
    config, mesh = session.config, session.mesh
    goes_on = config.checkpoint.resume or is_requeued(os.environ)
    mixing = session.mixing()
    _say_if_too_large(session, mixing)
    _make_room(session, goes_on, mixing.num_steps)
    PROGRESS.begin(Phase.prove)
    forward = prove_model(session)
    PROGRESS.begin(Phase.load)
    base = _base(session)
    # Before a checkpoint takes the place of the weights that training begins with.
    references = build_references(session, mixing)
    chooser = build_chooser(session, mixing)
    evaluator = build_evaluator(session, mixing, session.heed, references)
    saver = build_saver(session, base)
    objective = _objective(session, mixing, references, stack)
    state = saver.resume(goes_on)
    mixing.restore(state)
    evaluator.require_base(state)
    session.heed()
    journal = _open_journal(session, state, mixing, goes_on and config.checkpoint.enabled)
    during = build_during(session, mixing.num_steps, evaluator.task_scores, journal, stop_flag)
    best = best_rule(config, during.task_scores)
    rounds = build_rounds(session, mixing, objective)
    if rounds is not None:
        rounds.restore(state)
    loader: StepLoader = open_loader(session, mixing, objective) if rounds is None else rounds.loader
    manual_gc = ManualGc(every_steps=50)
    for leave in (journal.release, journal.leave, loader.close, manual_gc.close):
        stack.callback(leave)
    parts = RunParts(
        session.policy,
        objective,
        loader,
        evaluator,
        during,
        mixing,
        saver,
        functools.partial(_lr, config, mixing.num_steps),
        journal,
        stop_flag,
        manual_gc,
        best,
        save_clock_of(config.checkpoint, mesh),
        config.checkpoint.enabled and config.checkpoint.background and saver.has_room_for_copy(),
        pace_of(config.cluster.watch, session.policy),
        SpikeWatch(config.train.spikes, mesh),
        chooser,
        rounds,
    )
    cadence = cadence_of(config, mixing.num_steps, best)
    if mesh.is_first:
        say_what_runs(session, mixing, base)
        say_how_long(session, forward, cadence, state.step)
    journal.started(state, world_size=mesh.num_ranks, num_steps=mixing.num_steps)
    return _train_and_conclude(session, parts, state, cadence)


def _objective(
    session: Session, mixing: Mixing, references: RunReferences | None, stack: ExitStack
) -> Objective:
    """Return what is minimised, once who is asked beside the model has been. Collective: every rank."""
    config = session.config
    return build_objective(
        config.objective,
        list(session.stores),
        [store.train.unit for store in session.stores.values()],
        build_teacher(session, mixing, stack),
        None if references is None else references.train.of,
        None if references is None else references.mismatched,
        replay_weights(config.data.sources, config.replay),
        distilled(config.data.sources),
    )


def _train_and_conclude(session: Session, parts: RunParts, state: TrainState, cadence: Cadence) -> StopReason:
    """Train, compare with the base, and close the records, however it ends. Collective: every rank."""
    mesh, journal = session.mesh, parts.journal
    begun_at, status, is_measured = state.step, "failed", False
    try:
        reason = train(parts, state, cadence)
        _say_if_not_begun(reason, begun_at, state)
        if reason in (StopReason.finished, StopReason.early_stop):
            _say_if_none_is_best(parts.best, state)
            try:
                is_measured = _compare(session, parts, state)
            except GivenUp:
                reason = StopReason.preempted
        status = reason.value
    finally:
        PROGRESS.begin(Phase.finish)
        journal.close(state, status)
    has_concluded = reason in (StopReason.finished, StopReason.early_stop)
    if mesh.is_first and has_concluded:
        if is_measured:
            take_layer_drift(session.config, state.step)
        _conclude(session, journal, is_measured)
    journal.leave()
    if has_concluded:
        journal.concluded(state, asked_digest(session.config))
    # Launchers end all ranks when one ends with a code: the first may still be writing.
    mesh.barrier()
    return reason


def _base(session: Session) -> str | None:
    """Return the digest of what training began with where it is asked for. Collective: every rank.

    Whole weights without a comparison or a pull need no base: they are not read for the sake of a digest.
    """
    is_needed = session.goes_by_base or session.config.evaluate.forgetting
    return session.base_digest() if is_needed else None


def _say_if_too_large(session: Session, mixing: Mixing) -> None:
    """Say before anything that takes long that a step passes over the data several times; rank 0."""
    said = mixing.too_large_a_step(session.config.train, session.mesh.data.size)
    if said is not None and session.mesh.is_first:
        _LOG.warning("%s", said)


def _say_if_not_begun(reason: StopReason, begun_at: int, state: TrainState) -> None:
    if reason is StopReason.preempted and state.step == begun_at:
        _LOG.info(NOT_BEGUN)


def _compare(session: Session, parts: RunParts, state: TrainState) -> bool:
    """Compare what was trained with its base; tell whether it was. Collective: every rank.

    Raises:
        GivenUp: A rank was asked to stop meanwhile; another start compares.
    """
    held_out, config = session.held_out(), session.config
    PROGRESS.begin(Phase.evaluate)
    parts.stop_flag.when = COMPARING
    return parts.evaluator.finish(
        state, lambda: probe_recovery(parts, config, session.stores, held_out, parts.mixing, state)
    )


def _conclude(session: Session, journal: Journal, is_measured: bool) -> None:
    """Write the report of a run that is over and say what changed, or why that is not known; rank 0."""
    if (why := why_no_comparison(session.config, session.stores)) is not None:
        print(why)
    announce(session.run_dir)
    if is_measured:
        journal.conclude(conclusion(session.run_dir, session.config.gate))


def _open_journal(session: Session, state: TrainState, mixing: Mixing, goes_on: bool) -> Journal:
    """Open the records of a run on rank 0; elsewhere a journal that only counts."""
    return open_journal(
        session.config,
        session.run_dir,
        state,
        mixing,
        session.mesh,
        model_shape(session.loaded.model, session.loaded.num_parameters) if session.mesh.is_first else None,
        None if session.tuned.peft_config is None else session.tuned.num_trainable,
        goes_on,
    )


def _make_room(session: Session, goes_on: bool, num_steps: int) -> None:
    """Refuse before the proofs what the disk cannot hold, now that it is counted. Collective: every rank."""
    options, num_trainable = session.config.checkpoint, session.tuned.num_trainable
    every = session.config.evaluate.every_steps
    if options.enabled:
        session.mesh.from_first(
            lambda: make_room(session.run_dir, options, every, goes_on, num_trainable, num_steps)
        )


def build_saver(session: Session, base: str | None) -> Saver:
    """Prove what a checkpoint leaves out and return what saves and resumes. Collective: every rank."""
    config = session.config
    probe = probe_tokens(session.stores.values())
    identity = RunIdentity(
        config_digest(config), data_digest(session.stores), base if session.goes_by_base else None
    )
    frozen = prove_adapter(session, probe)
    return Saver(session.policy, session.run_dir, config.checkpoint, identity, probe, frozen, config.seed)


def _say_if_none_is_best(best: BestRule | None, state: TrainState) -> None:
    """Say at the end of a run that no checkpoint is its best, and why."""
    if best is None or state.best_step is not None:
        return
    _LOG.warning(
        "No checkpoint is the best: %s was never measured, and finite, at one. `last` is there.", best.metric
    )


def open_loader(session: Session, mixing: Mixing, objective: Objective) -> TrainLoader:
    """Return what reads this rank's packs."""
    return TrainLoader(
        list(session.stores),
        [store.train for store in session.stores.values()],
        mixing.plan,
        session.mesh.data,
        session.config.train.micro_batch_size,
        session.pad_id,
        objective.attach,
    )


def _lr(config: RunConfig, num_steps: int, step: int) -> float:
    return config.optim.lr * lr_factor(step, num_steps, config.schedule)
