"""Who tells a run what a frozen model says of its text: the base of replay, or the teacher of a distillation."""

from __future__ import annotations

import contextlib
import logging
from contextlib import ExitStack

from trainer.config.data import Role
from trainer.config.distill import DistillConfig, DivergenceKind
from trainer.config.objective import ObjectiveKind
from trainer.config.teacher import distilled
from trainer.errors import ConfigError
from trainer.mix.mixing import Mixing
from trainer.model.head.comparison import Comparison
from trainer.model.tune.new_tokens import vocabulary
from trainer.run.frozen_teacher import TeacherFiles, find_teacher, teacher_policy
from trainer.run.session import Session
from trainer.run.teacher_ids import check_teacher_tokenizer, check_used_ids
from trainer.teacher.cached import CachedBase, open_reference
from trainer.teacher.inquiry import Question
from trainer.teacher.live import LiveTeacher
from trainer.teacher.teacher import Teacher

_LOG = logging.getLogger(__name__)


def build_teacher(session: Session, mixing: Mixing, stack: ExitStack) -> Teacher | None:
    """Return who says what a frozen model thinks; None where nobody is asked. Collective: every rank.

    Args:
        stack: Of the run, while which a teacher beside the student stays.
    Raises:
        GivenUp: A rank was asked to stop meanwhile.
    """
    if session.config.objective.kind is ObjectiveKind.distill:
        return _teacher(session, mixing, stack)
    return _base_on_replay(session, mixing)


def _base_on_replay(session: Session, mixing: Mixing) -> Teacher | None:
    """Return who says what the base thinks of replay; None without replay.kl."""
    config, kl = session.config, session.config.replay.kl
    if not kl.beta:
        return None
    if session.tuned.peft_config is not None and session.start is None:
        sources = enumerate(config.data.sources.values())
        replay = frozenset(i for i, source in sources if source.role is Role.replay)
        return LiveTeacher(kl.beta, kl.top, replay)
    size = config.evaluate.micro_batch_size
    question = Question(session.begun_digest(), config.zero.dtype, kl.top, size, session.pad_id)
    packs = mixing.replay_to_draw()
    reference = open_reference(
        session.mesh,
        lambda: contextlib.nullcontext(session.policy),
        config.data,
        session.stores,
        packs,
        question,
        session.heed,
    )
    return CachedBase(kl.beta, reference)


def _teacher(session: Session, mixing: Mixing, stack: ExitStack) -> Teacher:
    """Return who says what the teacher thinks of what is distilled."""
    config, options = session.config, session.config.objective.distill
    session.mesh.from_first(lambda: _check_ids(session))
    teacher = find_teacher(session)
    if teacher.digest == session.begun_digest() and session.mesh.is_first:
        _LOG.warning(
            "The teacher %s is the model that is trained: as it begins, there is nothing to learn.",
            teacher.source,
        )
    how = comparison(options, num_shared_ids(session, teacher))
    num_ids = how.num_ids or teacher.num_rows
    if options.top > num_ids:
        raise ConfigError(
            f"`objective.distill.top` must be at most the vocabulary that teacher and student share ({num_ids:,}), but "
            f"is {options.top} instead. Set objective.distill.top=64."
        )
    sources, beta = distilled(config.data.sources), options.weight * options.temperature**2
    if not options.cached:
        frozen = stack.enter_context(teacher_policy(session, teacher))
        return LiveTeacher(beta, options.top, sources, how, frozen)
    question = Question(
        base_digest=teacher.digest,
        dtype=config.zero.dtype,
        num_top=options.top,
        micro_batch_size=config.evaluate.micro_batch_size,
        pad_id=session.pad_id,
        how=how,
        precision=options.precision.value,
        who="the teacher",
        about="distilled",
        room="lower objective.distill.top, or shorten the run",
    )
    reference = open_reference(
        session.mesh,
        lambda: teacher_policy(session, teacher),
        config.data,
        session.stores,
        mixing.to_draw(sorted(sources)),
        question,
        session.heed,
    )
    return CachedBase(beta, reference, how)


def _check_ids(session: Session) -> None:
    """Refuse a teacher of another tokenizer: a run may have been started past the command that looks first."""
    names = list(session.stores)
    used = [names[number] for number in sorted(distilled(session.config.data.sources))]
    others = check_teacher_tokenizer(session.config, session.tokenizer)
    check_used_ids(others, {name: store.train for name, store in session.stores.items()}, used)


def num_shared_ids(session: Session, teacher: TeacherFiles) -> int | None:
    """Return how many ids both models have, where that is not all of both; what else one has is masked out."""
    new = session.tokenizer.new
    num_rows = session.loaded.model.config.get_text_config().vocab_size
    num_own = vocabulary(num_rows, new.ids if new is not None else ())
    if num_own == teacher.num_rows:
        return None
    shared = min(num_own, teacher.num_rows)
    _LOG.info(
        "The teacher has %d ids and the student %d: the first %d are compared, others are masked out of both.",
        teacher.num_rows,
        num_own,
        shared,
    )
    return shared


def comparison(options: DistillConfig, num_ids: int | None) -> Comparison:
    """Return how the teacher and the student are compared; a mixture of one of them alone is a KL."""
    divergence = options.divergence
    if divergence is DivergenceKind.jsd and options.jsd_beta in (0, 1):
        divergence = DivergenceKind.forward if options.jsd_beta == 0 else DivergenceKind.reverse
    return Comparison(divergence, options.jsd_beta, options.temperature, num_ids, options.cross_entropy)
