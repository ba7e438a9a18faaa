"""Composition root: builds the parts of a run in order, trains, tears down. The only place that knows all rooms."""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from trainer.config.data import Role
from trainer.config.schema import RunConfig, RunKind
from trainer.config.snapshot import write_atomic, write_provenance
from trainer.dist.env import rank_env
from trainer.evaluate.proofs.agreement import check_packing
from trainer.evaluate.proofs.isolation import Isolation, check_isolation
from trainer.export.merge import CONFIG, describe_adapter
from trainer.metrics.device import describe_device
from trainer.metrics.outlook import Outlook
from trainer.metrics.wandb import new_run_id
from trainer.mix.loader import TrainLoader
from trainer.mix.mixing import Mixing
from trainer.model.masks import reach
from trainer.run.journal import Journal, open_journal
from trainer.run.keeper import Keeper, show_forgetting
from trainer.run.loop import Cadence, Parts, StopReason, train
from trainer.run.recovery import probe_recovery
from trainer.run.session import (
    Session,
    build_forgetting,
    build_reference,
    build_task_scores,
    open_session,
)
from trainer.runtime.disk import disk_explained
from trainer.runtime.gc import ManualGc
from trainer.runtime.job import deadline
from trainer.runtime.lock import run_lock
from trainer.runtime.shortage import shortage_explained
from trainer.runtime.signals import StopFlag
from trainer.teacher.base_model import AdapterBase, BaseModel, CachedBase
from trainer.teacher.reference import BaseReference

_LOG = logging.getLogger(__name__)

NO_REPLAY = (
    "This run continues pretraining without replay, which forgets most: add replay=general, or a source with "
    "role=replay."
)


def run_training(config: RunConfig) -> StopReason:
    """Train as configured. Collective: every rank calls it with the same configuration."""
    with ExitStack() as stack:
        stop_flag = stack.enter_context(StopFlag(deadline(os.environ)))
        if rank_env(os.environ).is_first:
            stack.enter_context(run_lock(Path(config.run_dir)))
        # Inside the stack: the other ranks hear of the sentence, not of what it explains.
        size, layers = config.train.micro_batch_size, config.model.checkpoint_layers
        with shortage_explained("train.micro_batch_size", size, layers), disk_explained(Path(config.run_dir)):
            resumes = config.checkpoint.resume and config.checkpoint.enabled
            return _train(open_session(config, stack, resumes), stop_flag, stack)


def _train(session: Session, stop_flag: StopFlag, stack: ExitStack) -> StopReason:
    config, group = session.config, session.group
    mixing = Mixing(config, session.stores, session.shape.packs_per_step)
    probed = _prove_isolation(session) if config.train.isolation_probe else None
    work = Keeper(session.run_dir, session.engine, group, session.flash, config, mixing)
    # Whole weights without a comparison need no base: they are not read for the sake of a digest.
    needs_base = session.tuned.is_partial or config.evaluate.forgetting
    base = session.base_digest() if needs_base else None
    work.prepare(
        session.held_out(),
        session.stores,
        session.tuned.num_trainable,
        build_forgetting(session),
        build_task_scores(session),
        base if session.tuned.is_partial else None,
    )
    # Before a checkpoint takes the place of the base's weights.
    reference = None if session.tuned.peft_config is not None else build_reference(session, mixing)
    state = work.resume()
    if state.wandb_id is None:
        state.wandb_id = group.broadcast(new_run_id())
    journal = open_journal(
        config,
        session.run_dir,
        state,
        mixing,
        group.world_size,
        session.loaded.model.config.to_dict() if group.is_first else None,
        None if session.tuned.peft_config is None else session.tuned.num_trainable,
    )
    cadence = _cadence(config, mixing.num_steps)
    parts = _parts(session, mixing, reference, work, journal, stop_flag, stack)
    if group.is_first:
        _say_what_runs(session, mixing, base)
        _say_how_long(session, probed, cadence, state.step)
    journal.started(state, world_size=group.world_size, num_steps=mixing.num_steps)
    status, is_measured = "failed", False
    try:
        reason = train(parts, state, cadence)
        status = reason.value
        if reason in (StopReason.finished, StopReason.early_stop):
            is_measured = work.finish(
                state,
                session.tokenizer,
                lambda: probe_recovery(parts, config, session.stores, session.held_out(), mixing, state),
            )
    finally:
        journal.close(state, status)
    if is_measured and group.is_first:
        show_forgetting(session.run_dir)
    # Launchers end all ranks when one ends with a code: the first may still be writing.
    group.barrier()
    return reason


def _prove_isolation(session: Session) -> Isolation:
    """Stop unless documents of a pack are what they are alone. Collective: every rank."""
    hf_config, seq_len = session.loaded.model.config, session.config.data.seq_len
    window = reach(hf_config)
    vocab_size = hf_config.get_text_config().vocab_size
    probed = check_isolation(session.engine, vocab_size, seq_len, session.group, session.flash, window)
    apart = check_packing(session.engine, hf_config, seq_len, session.group, session.flash)
    _LOG.info(
        "Isolation: changing a document moved the others' logits by %.1e of the largest; in a pack they are what they "
        "are alone to %.1e%s.",
        probed.moved,
        apart,
        ""
        if not window
        else f"; the model's window is {window} tokens" + (", longer than a pack" * (window >= seq_len)),
    )
    return probed


def _parts(
    session: Session,
    mixing: Mixing,
    reference: BaseReference | None,
    work: Keeper,
    journal: Journal,
    stop_flag: StopFlag,
    stack: ExitStack,
) -> Parts:
    """Return everything the loop uses; what has to be closed goes on the stack."""
    loader = _open_loader(session, mixing, reference)
    stack.callback(loader.close)
    manual_gc = ManualGc(every_steps=50)
    stack.callback(manual_gc.close)
    return Parts(
        session.engine,
        loader,
        session.group,
        session.flash,
        work,
        journal,
        stop_flag,
        manual_gc,
        _base_model(session, reference),
    )


def _base_model(session: Session, reference: BaseReference | None) -> BaseModel | None:
    """Return where a step learns what the base says of replay; None without replay.kl."""
    kl = session.config.replay.kl
    if not kl.beta:
        return None
    if reference is not None:
        return CachedBase(kl.beta)
    roles = [spec.role for spec in session.config.data.sources.values()]
    return AdapterBase(kl.beta, kl.top, frozenset(i for i, role in enumerate(roles) if role is Role.replay))


def _open_loader(session: Session, mixing: Mixing, reference: BaseReference | None) -> TrainLoader:
    """Return what reads this rank's packs."""
    return TrainLoader(
        list(session.stores),
        [store.train for store in session.stores.values()],
        mixing.plan,
        session.group.rank,
        session.group.world_size,
        session.config.train.micro_batch_size,
        session.pad_id,
        reference,
    )


def _say_what_runs(session: Session, mixing: Mixing, base: str | None) -> None:
    """Write provenance.json and the adapter's description, and print what the run will draw; rank 0."""
    write_provenance(
        session.run_dir,
        data={name: store.digest for name, store in session.stores.items()},
        inputs={
            "data": {name: store.described for name, store in session.stores.items()},
            "tokenizer": session.tokenizer.digest,
            "base": base,
        },
        model=session.loaded.source,
        attention=session.loaded.attention.name,
        kernels=session.loaded.kernels,
        device=describe_device(),
    )
    if session.tuned.peft_config is not None:
        described = describe_adapter(session.tuned.peft_config, session.loaded.source)
        write_atomic(session.run_dir / CONFIG, described)
    Console().print(mixing.table())
    if session.config.kind is RunKind.continued_pretrain and not mixing.has_replay:
        _LOG.warning(NO_REPLAY)


def _say_how_long(session: Session, probed: Isolation | None, cadence: Cadence, step: int) -> None:
    """Say before the first step how long it will take, where that is long; not known without the isolation probe."""
    if probed is None:
        return
    layers = session.config.model.checkpoint_layers or 0
    num_layers = max(getattr(session.loaded.model.config, "num_hidden_layers", 1), 1)
    packs = len(session.held_out().batches(0, session.group.world_size))
    outlook = Outlook(
        forward_s=probed.forward_s,
        forward_tokens=probed.num_tokens,
        step_tokens=session.shape.packs_per_step * session.shape.seq_len // session.group.world_size,
        num_steps=cadence.num_steps - step,
        recomputed_share=1.0 if layers < 0 else min(layers / num_layers, 1.0),
        evaluation_tokens=packs * session.config.evaluate.micro_batch_size * session.shape.seq_len,
        num_evaluations=cadence.evaluations_from(step),
    )
    if outlook.sentence is not None:
        _LOG.info(outlook.sentence)


def _cadence(config: RunConfig, total: int) -> Cadence:
    return Cadence(
        num_steps=total,
        log_every=config.log.every_steps,
        evaluate_every=config.evaluate.every_steps,
        save_every=config.checkpoint.every_steps,
        saves=config.checkpoint.enabled,
        evaluate_before_save=config.checkpoint.keep_best,
        max_non_finite=config.train.max_non_finite_steps,
        patience=config.evaluate.patience,
        min_delta_nats=config.evaluate.min_delta_nats,
    )
