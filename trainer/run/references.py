"""The reference of a run of preferences: which answers it is asked about, and what shapes what it says."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from trainer.config.objective import ObjectiveKind
from trainer.config.tune import Init
from trainer.data.store.prepared import digest_of
from trainer.data.types import Unit
from trainer.mix.mixing import Mixing
from trainer.run.session import Session
from trainer.teacher.answer_sums import AnswerPacks, AnswerSums
from trainer.teacher.start_answers import AnswerQuestion, open_answer_sums


@dataclass(frozen=True, slots=True)
class RunReferences:
    """What the model said of answers before the first step."""

    train: AnswerSums
    validation: AnswerSums


def build_references(session: Session, mixing: Mixing) -> RunReferences | None:
    """Ask for the reference, or find it; None where the loss needs none. Collective: every rank.

    Call it before a checkpoint is loaded.

    Raises:
        GivenUp: A rank was asked to stop meanwhile.
    """
    config = session.config
    options = config.objective.preference
    if config.objective.kind is not ObjectiveKind.preference or not options.needs_reference:
        return None
    stores = list(session.stores.values())
    answers = [number for number, store in enumerate(stores) if store.train.unit is not Unit.document]
    held_out = {
        number: np.arange(min(stores[number].validation.num_packs, config.data.max_validation_packs))
        for number in answers
    }
    question = AnswerQuestion(
        splits=[
            AnswerPacks([store.train for store in stores], mixing.to_draw(answers)),
            AnswerPacks([store.validation for store in stores], held_out),
        ],
        model=_model(session),
        dtype=config.zero.dtype,
        micro_batch_size=config.evaluate.micro_batch_size,
        pad_id=session.pad_id,
    )
    return RunReferences(*open_answer_sums(session.policy, question, config.data.cache_dir, session.heed))


def _model(session: Session) -> dict[str, object]:
    """Return what shapes the sums beside the answers. Collective: every rank.

    The options of an adapter that begins as its base are not in it: they shape no sum.
    """
    config, loaded = session.config, session.loaded
    found: dict[str, object] = {
        "base": session.base_digest(),
        "attention": loaded.attention.name,
        "kernels": loaded.kernels,
        "device": session.mesh.device.type,
        "in_rows": session.policy.in_rows,
        "new_tokens": list(config.model.new_tokens),
    }
    if config.tune.init is Init.pissa:  # moves the base by rounding, each seed in its own way
        found["pissa"] = [digest_of(dataclasses.asdict(config.tune)), config.seed]
    return found
