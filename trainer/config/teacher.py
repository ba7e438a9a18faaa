"""The teacher of a distillation as a configuration of a model."""

from __future__ import annotations

import dataclasses

from trainer.config.data import Role, SourceConfig
from trainer.config.distill import DistillConfig
from trainer.config.model import ModelConfig, ModelHead, ModelKind
from trainer.config.options import shipped_options

KEY = "objective.distill.teacher"
_LEFT_OPEN = "???"


def teacher_model(options: DistillConfig, student: ModelConfig) -> ModelConfig:
    """Return the teacher's configuration: an option of the group `model`, a folder or a name; else as the student's."""
    chosen = {
        one.name: one.values
        for one in shipped_options()
        if one.group == "model" and one.values and _LEFT_OPEN not in one.values.values()
    }.get(options.teacher)
    kind, path = ModelKind.pretrained, options.teacher
    if chosen is not None:
        kind = ModelKind(chosen.get("model.kind", ModelKind.pretrained.value))
        path = str(chosen.get("model.path", ""))
    return dataclasses.replace(
        student,
        kind=kind,
        path=path,
        head=ModelHead.language,
        revision=options.teacher_revision,
        tokenizer=None,
        new_tokens=[],
        chat_template=None,
        checkpoint_layers=0,
    )


def distilled(sources: dict[str, SourceConfig]) -> frozenset[int]:
    """Return the numbers of the sources that the student learns from its teacher: those with role=target."""
    return frozenset(number for number, source in enumerate(sources.values()) if source.role is Role.target)


def of_teacher(sentence: str) -> str:
    """Return what is said of a model's key, of the teacher's."""
    return sentence.replace(", or set model.tokenizer=FOLDER", "").replace("model.path", KEY)
